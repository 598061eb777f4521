"""The questions of practice: an order of its own every epoch, made once for a step."""

import pytest

from nanochat.stages.rl import Questions


@pytest.mark.parametrize(("num_questions", "count"), [(7, 3), (5, 16), (10, 10), (1, 4)])
def test_the_questions_of_the_steps_are_the_epochs_in_a_row(num_questions: int, count: int) -> None:
    questions = Questions(range(100, 100 + num_questions), seed=3)
    asked = [number for step in range(12) for number in questions.of_step(step, count)]
    epochs = [number for epoch in range(12 * count // num_questions + 1) for number in questions.order(epoch)]
    assert asked == epochs[: 12 * count]


def test_a_step_shuffles_once_for_each_epoch_that_it_touches(monkeypatch: pytest.MonkeyPatch) -> None:
    shuffled: list[int] = []
    order = Questions.order
    monkeypatch.setattr(Questions, "order", lambda self, epoch: shuffled.append(epoch) or order(self, epoch))
    questions = Questions(range(8_000), seed=3)
    questions.of_step(4, 16)
    assert shuffled == [0]
    questions.of_step(499, 16)
    assert shuffled == [0, 0]
    questions.of_step(0, 8_001)
    assert shuffled == [0, 0, 0, 1]
