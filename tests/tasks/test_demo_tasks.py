import re
from collections import Counter

import pytest

from nanochat.tasks.arithmetic import ArithmeticTask
from nanochat.tasks.bee import SpellingBeeTask
from nanochat.tasks.catalog import TASKS, build_task
from nanochat.tasks.demo import KINDS, generate_documents
from nanochat.tasks.identity import ANSWERS, IdentityTask
from nanochat.tasks.letters import LettersTask
from nanochat.tasks.spelling import SpellingTask
from nanochat.tasks.task import TaskSlice
from nanochat.tasks.totals import TotalsTask
from nanochat.tasks.words import is_held_out, load_split_words, load_words
from nanochat.tools.calculator import calculate

NAMES = list(TASKS)


def tool_call(conversation) -> tuple[str, str]:
    parts = {part.kind: part.text for part in conversation.messages[-1].parts}
    return parts["python"], parts["python_output"]


def counted_words(task: LettersTask) -> set[str]:
    return {tool_call(conversation)[0].split('"')[1].strip() for conversation in task}


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("name", NAMES)
def test_examples_are_the_same_every_time_and_their_own_answer_is_right(name: str, split) -> None:
    task, again = build_task(name, split), build_task(name, split)
    assert len(task) == task.num_examples() > 100
    for index in range(0, len(task), 17):
        conversation = task.example(index)
        assert conversation == again.example(index)
        assert [message.role for message in conversation.messages] == ["user", "assistant"]
        answer = conversation.messages[-1].text
        assert task.evaluate(conversation, answer) is (None if name == "stories" else True)
        assert task.max_new_tokens and len(answer) < 1_000
    with pytest.raises(IndexError):
        task[len(task)]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "stories"])
@pytest.mark.parametrize("wrong", ["", "I do not know.", "The answer is 123456789.", "x"])
def test_wrong_answers_are_wrong(name: str, wrong: str) -> None:
    task = build_task(name, "test")
    assert not any(task.evaluate(conversation, wrong) for conversation in TaskSlice(task, 0, 100))


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("kind", [LettersTask, ArithmeticTask, TotalsTask, SpellingBeeTask])
def test_the_calculator_gives_what_the_tool_calls_expect(kind, split) -> None:
    for conversation in kind(split, 500):
        call, output = tool_call(conversation)
        assert calculate(call) == output


def test_counts_are_those_of_the_word_asked_for() -> None:
    for conversation in LettersTask("test", 300):
        call, output = tool_call(conversation)
        word, letter = re.fullmatch(r'" ([a-z]+)"\.count\("([a-z])"\)', call).groups()  # pyright: ignore
        assert f" {word}" in conversation.messages[0].text
        assert output == str(sum(char == letter for char in word))


def test_train_and_test_words_differ() -> None:
    train, test = counted_words(LettersTask("train", 5_000)), counted_words(LettersTask("test", 1_000))
    assert len(test) > 300 and not train & test
    assert all(map(is_held_out, test)) and not any(map(is_held_out, train))
    spelled = {re.sub("-", "", c.messages[-1].text) for c in SpellingTask("train", 2_000)}
    assert not spelled & {re.sub("-", "", c.messages[-1].text) for c in SpellingTask("test", 1_000)} | spelled & test


def test_train_and_test_operands_differ() -> None:
    def pairs(split) -> set[tuple[int, ...]]:
        calls = (tool_call(conversation)[0] for conversation in ArithmeticTask(split, 4_000))
        return {tuple(sorted(map(int, re.findall(r"\d+", call)))) for call in calls}

    assert not pairs("train") & pairs("test")


def test_the_pretraining_text_holds_nothing_that_is_tested() -> None:
    held_out = {word for word in load_words() if is_held_out(word)}
    for split in ("train", "val"):
        for document in generate_documents(100_000, seed=1, split=split):
            for word in re.findall(r'" ([a-z]+)"\.count|word ([a-z]+) is spelled', document):
                assert not held_out & set(word)
            for a, b in re.findall(r"(\d+)[-+*](\d+) = ", document):
                assert not is_held_out(f"{min(int(a), int(b))} {max(int(a), int(b))}")


def test_both_splits_have_carried_words() -> None:
    assert len(load_split_words("train")) > 800 and len(load_split_words("test")) > 80
    assert len(set(load_words())) == len(load_words())
    assert all(re.fullmatch("[a-z]+", word) for word in load_words())


def test_documents_are_deterministic_and_have_the_size_asked_for() -> None:
    one, two = (list(generate_documents(50_000, seed=5)) for _ in range(2))
    assert one == two != list(generate_documents(50_000, seed=6))
    assert not set(one) & set(generate_documents(50_000, seed=5, split="val")) or len(one) > 100
    assert 50_000 <= sum(map(len, one)) < 52_000
    assert all(document.strip() == document and document for document in one)


def test_documents_are_mixed_evenly_all_along() -> None:
    documents = list(generate_documents(200_000))
    for part in (documents[: len(documents) // 2], documents[len(documents) // 2 :]):
        chars = Counter()
        for document in part:
            kind = (
                "stories"
                if "once" in document.lower() and len(document) > 80 and '.count("' not in document
                else "other"
            )
            chars[kind] += len(document)
        assert chars["stories"] / chars.total() == pytest.approx(KINDS["stories"] / 100, abs=0.05)
    assert sum(KINDS.values()) == 100


def test_every_identity_question_has_one_answer() -> None:
    questions = [c.messages[0].text for c in IdentityTask("test")]
    assert len(questions) == len(set(questions))
    task = IdentityTask("test")
    for conversation in task:
        right = [answer.text for answer in ANSWERS if task.evaluate(conversation, answer.text)]
        assert conversation.messages[-1].text in right
        assert task.evaluate(conversation, conversation.messages[-1].text.upper() + "\n")


def test_an_answer_may_hold_other_numbers_before_the_last() -> None:
    task = ArithmeticTask("test")
    conversation = task[0]
    call, output = tool_call(conversation)
    assert task.evaluate(conversation, f"{call} = {output}")
    assert not task.evaluate(conversation, f"{output} is not {int(output) + 1}")
