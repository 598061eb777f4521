import json
import math
import os
import signal
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanochat.data.batch import IGNORED, Batch
from nanochat.errors import NumericalError, StoppedError
from nanochat.model.optim import build_optimizer
from nanochat.runtime import World
from nanochat.training.loop import TrainState, lr_multiplier, muon_momentum
from nanochat.training.metrics import MetricsFile
from tests.training.loops import Event, Recipe, train

VOCAB, WIDTH = 11, 8


class TinyModel(nn.Module):
    """An embedding, one matrix and a head: one parameter of every kind."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(VOCAB, WIDTH)
        self.matrix = nn.Linear(WIDTH, WIDTH, bias=False)
        self.head = nn.Linear(WIDTH, VOCAB, bias=False)

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        logits = self.head(torch.relu(self.matrix(self.embedding(ids))))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")


def make_batch(seed: int, num_masked: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(VOCAB, (2, 6), generator=generator)
    targets = torch.randint(VOCAB, (2, 6), generator=generator)
    targets.view(-1)[:num_masked] = IGNORED
    return Batch(ids, targets)


def make_recipe(
    model: TinyModel,
    steps: Iterable[list[Batch]],
    num_steps: int,
    save: Callable[[TrainState], None] = lambda state: None,
    events: tuple[Event, ...] = (),
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Recipe:
    source = iter(steps)
    return Recipe(
        name="base",
        model=model,
        optimizer=build_optimizer(model, 0.02, 0.2, 0.004, 0.0),
        microbatches=lambda: next(source),
        loss=loss or model.loss,
        num_steps=num_steps,
        warmup=0.0,
        warmdown=0.5,
        grad_clip=1.0,
        save=save,
        resume_hint="nanochat resume demo",
        events=events,
    )


def weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_the_loss_is_the_mean_over_all_targets_of_the_step_however_it_is_cut() -> None:
    whole, parts = TinyModel(), TinyModel()
    first, second = make_batch(1, num_masked=9), make_batch(2)  # 3 and 12 targets: a mean of means would differ
    joined = Batch(torch.cat((first.ids, second.ids)), torch.cat((first.targets, second.targets)))
    records: list[dict] = []
    train(make_recipe(whole, [[joined]], 1), TrainState(), World(), records.append)
    train(make_recipe(parts, [[first, second]], 1), TrainState(), World(), records.append)
    fresh = TinyModel()
    assert records[0]["loss"] == pytest.approx(fresh.loss(*joined).item() / 15, rel=1e-6)
    assert records[1]["loss"] == pytest.approx(records[0]["loss"], rel=1e-6)
    torch.testing.assert_close(weights(whole), weights(parts), rtol=1e-5, atol=1e-6)


def test_a_step_without_targets_changes_nothing_and_is_not_a_nan() -> None:
    model, records, seen = TinyModel(), [], []
    events = (Event("look", 1, lambda state: seen.append(weights(model).clone())),)
    steps = [[make_batch(1)], [make_batch(3, num_masked=12)], [make_batch(4)]]
    state = train(make_recipe(model, steps, 3, events=events), TrainState(), World(), records.append)
    assert records[1]["loss"] is None and state.skipped == 0 and state.step == 3
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])
    assert torch.isfinite(seen[2]).all() and math.isfinite(state.smoothed_loss or math.nan)


def test_a_non_finite_step_is_not_taken_and_counted() -> None:
    model, records = TinyModel(), []
    calls = iter([1.0, math.nan, 1.0, math.inf, 1.0])

    def loss(ids: Tensor, targets: Tensor) -> Tensor:
        return model.loss(ids, targets) * next(calls)

    seen: list[Tensor] = []
    events = (Event("look", 1, lambda state: seen.append(weights(model).clone())),)
    steps = [[make_batch(seed)] for seed in range(5)]
    state = train(make_recipe(model, steps, 5, events=events, loss=loss), TrainState(), World(), records.append)
    assert state.skipped == 2 and state.step == 5
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[2], seen[3])
    assert not torch.equal(seen[1], seen[2]) and not torch.equal(seen[3], seen[4])
    assert torch.isfinite(seen[4]).all()


def test_three_non_finite_steps_in_a_row_save_the_good_weights_and_stop() -> None:
    model, saved = TinyModel(), []
    bad = {3, 4, 5}
    step = 0

    def loss(ids: Tensor, targets: Tensor) -> Tensor:
        nonlocal step
        step += 1
        return model.loss(ids, targets) * (math.nan if step in bad else 1.0)

    def save(state: TrainState) -> None:
        saved.append((state.step, weights(model).clone()))

    recipe = make_recipe(model, [[make_batch(seed)] for seed in range(9)], 9, save=save, loss=loss)
    with pytest.raises(NumericalError, match="steps 3 to 5") as caught:
        train(recipe, TrainState(), World(), lambda record: None)
    assert caught.value.exit_code == 6 and caught.value.hint
    assert saved[0][0] == 5 and torch.isfinite(saved[0][1]).all()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_finishes_the_step_saves_and_says_how_to_go_on(number: int) -> None:
    model, saved, records = TinyModel(), [], []
    handler = signal.getsignal(number)

    def loss(ids: Tensor, targets: Tensor) -> Tensor:
        if len(records) == 2:  # in the middle of the third step
            os.kill(os.getpid(), number)
        return model.loss(ids, targets)

    steps = [[make_batch(seed)] for seed in range(9)]
    recipe = make_recipe(model, steps, 9, save=lambda state: saved.append(state.step), loss=loss)
    with pytest.raises(StoppedError, match="after step 3 of 9") as caught:
        train(recipe, TrainState(), World(), records.append)
    assert saved == [3] and len(records) == 3
    assert caught.value.hint == "nanochat resume demo" and caught.value.exit_code == 75
    assert signal.getsignal(number) is handler


def test_events_run_in_their_order_when_due_and_always_at_the_end() -> None:
    ran: list[tuple[str, int]] = []
    events = tuple(
        Event(name, every, lambda state, name=name: ran.append((name, state.step)))
        for name, every in (("save", 2), ("evaluate", 3), ("sample", 0))
    )
    train(make_recipe(TinyModel(), [[make_batch(0)]] * 5, 5, events=events), TrainState(), World(), lambda record: None)
    assert ran == [("save", 2), ("evaluate", 3), ("save", 4), ("save", 5), ("evaluate", 5), ("sample", 5)]


def test_a_resume_repeats_the_events_of_its_step() -> None:
    ran: list[int] = []
    events = (Event("evaluate", 2, lambda state: ran.append(state.step)),)
    recipe = make_recipe(TinyModel(), [[make_batch(0)]] * 5, 5, events=events)
    train(recipe, TrainState(step=2), World(), lambda record: None)
    assert ran == [2, 4, 5]


def test_the_state_survives_json_with_its_random_numbers() -> None:
    torch.manual_seed(3)
    state = TrainState(step=4, smoothed_loss=1 / 3, cursor={"ranks": [{"row": 1}]})
    saved = json.loads(json.dumps(state.to_dict()))
    expected = torch.rand(3)
    torch.manual_seed(9)
    again = TrainState.from_dict(saved)
    assert torch.equal(torch.rand(3), expected)
    assert (again.step, again.smoothed_loss, again.cursor) == (4, 1 / 3, {"ranks": [{"row": 1}]})


def test_metrics_are_cut_back_to_a_step_and_a_torn_line_is_left_out(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "base" / "metrics.jsonl")
    for step in range(1, 6):
        metrics.append({"step": step, "loss": 0.1 * step, "mfu": math.nan})
    with metrics.path.open("a") as file:
        file.write('{"step": 6, "lo')
    assert [record["step"] for record in metrics.read()] == [1, 2, 3, 4, 5]
    metrics.truncate(3)
    assert metrics.path.read_text().count("\n") == 3
    assert metrics.value_at(3, "loss") == 0.1 * 3 and metrics.value_at(3, "mfu") is None
    assert metrics.value_at(5, "loss") is None


def test_rates_warm_up_hold_and_fall_to_zero() -> None:
    values = [lr_multiplier(step / 100, warmup=0.1, warmdown=0.2) for step in range(101)]
    assert [values[step] for step in (0, 10, 80, 100)] == pytest.approx([0.0, 1.0, 1.0, 0.0])
    assert values[:11] == sorted(values[:11]) and values[80:] == sorted(values[80:], reverse=True)
    assert lr_multiplier(0.0, 0.0, 0.0) == lr_multiplier(1.0, 0.0, 0.0) == 1.0
    assert [muon_momentum(step) for step in (0, 300, 10**6)] == pytest.approx([0.85, 0.95, 0.95])
