import re

import pytest

from nanochat.tasks.bee import SimpleSpellingTask, SpellingBeeTask
from nanochat.tasks.words import is_held_out


def test_the_count_by_hand_the_call_and_the_answer_agree() -> None:
    for conversation in SpellingBeeTask("train", 500):
        parts = conversation.messages[-1].parts
        assert [part.kind for part in parts] == ["text", "python", "python_output", "text"]
        numbered = re.findall(r"\((\d+)\)", parts[0].text)
        assert numbered == [str(number + 1) for number in range(len(numbered))]
        assert f"That makes {len(numbered)}." in parts[0].text and parts[2].text == str(len(numbered))
        assert f"appears {len(numbered)} time" in parts[3].text


@pytest.mark.parametrize("kind", [SpellingBeeTask, SimpleSpellingTask])
def test_words_of_the_test_are_never_trained_on(kind) -> None:
    words = {}
    for split in ("train", "test"):
        texts = [conversation.messages[-1].text for conversation in kind(split, 1_000)]
        words[split] = {text.partition(":")[0].split()[-1] for text in texts}
        assert all(is_held_out(word) == (split == "test") for word in words[split])
    assert len(words["train"]) > 300 and not words["train"] & words["test"]


def test_the_spelling_is_that_of_the_word_asked_for() -> None:
    for conversation in SimpleSpellingTask("test", 300):
        word, _, spelt = conversation.messages[-1].text.partition(": ")
        assert spelt.split(", ") == list(word) and word in conversation.messages[0].text


@pytest.mark.parametrize(
    ("write", "right"),
    [
        (lambda word: ", ".join(word), True),
        (lambda word: "-".join(word).upper() + ".", True),
        (lambda word: f"It is {word}: {' '.join(word)}", True),
        (lambda word: word, False),
        (lambda word: f"{word}:", False),
        (lambda word: ", ".join(word + "x"), False),
        (lambda word: ", ".join(word[:-1]), False),
        (lambda word: ", ".join(word[::-1] + "q"), False),
    ],
)
def test_a_spelling_is_graded_by_its_letters(write, right: bool) -> None:
    task = SimpleSpellingTask("test", 50)
    for conversation in task:
        assert task.evaluate(conversation, write(conversation.messages[-1].text.partition(":")[0])) is right
