"""Files of other programs become the same conversations as ours, and what cannot is named with its place."""

import json
from typing import Any

import pytest

from nanochat.conversation import Conversation, Message, Part, assistant, user
from nanochat.tasks.dialects import ALPACA, MESSAGES, SHAREGPT, is_many, iter_values, read_conversation, read_json

TALK = Conversation((user("Be brief.\n\nHi"), assistant("Hello"), user("Bye"), assistant("See you")))


def turns(*texts: str, **of_last: object) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(texts)
    ]
    found[-1] |= of_last
    return found


def test_sharegpt_and_its_variants_are_read() -> None:
    four = turns("Hi", "Hello", "Bye", "See you")
    system = {"from": "system", "value": "Be brief."}
    ours = [{"role": {"human": "user", "gpt": "assistant"}[turn["from"]], "content": turn["value"]} for turn in four]
    for value in (
        {"id": "a", "conversations": [system, *four]},
        {"system": "Be brief.", "conversations": four},
        {"system": "Be brief.", "conversations": ours},
        [system, *four],
    ):
        assert read_conversation(value) == (TALK, SHAREGPT)
    masked, _ = read_conversation({"conversations": turns("Hi", "Hello", weight=0)})
    assert masked.messages[1] == Message("assistant", (Part("text", "Hello"),), is_learnt=False)


def test_alpaca_is_read() -> None:
    value = {"instruction": "Add.", "input": "1, 2", "output": "3", "system": "Be brief."}
    assert read_conversation(value) == (Conversation((user("Be brief.\n\nAdd.\n\n1, 2"), assistant("3"))), ALPACA)
    value = {"instruction": "Add.", "input": "", "output": "3"}
    assert read_conversation(value) == (Conversation((user("Add."), assistant("3"))), ALPACA)


def test_ours_stays_ours() -> None:
    value = [{"role": "user", "content": "Hi"}]
    assert read_conversation(value) == read_conversation({"messages": value}) == (Conversation((user("Hi"),)), MESSAGES)
    assert not is_many(value) and not is_many(turns("Hi")) and is_many([value]) and is_many([{"messages": value}])


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (7, 'expected {"messages"'),
        ({"text": "a", "score": 1}, "the keys are 'text', 'score'"),
        ({"conversations": turns("Hi", "Hello"), "messages": []}, "the key 'conversations' is not known"),
        ({"conversations": turns("Hi", "Hello"), "score": 1}, "the key 'score' is not known"),
        ({"conversations": turns("Hi", "Hello", values=1)}, "conversations[1]: the key 'values' is not known"),
        ({"conversations": [{"from": "tool", "value": "a"}]}, "conversations[0].from = 'tool' is none of human"),
        ({"conversations": turns("Hi")[:1] * 2}, "conversations[1].role = 'user', expected 'assistant'"),
        ({"conversations": [{"from": "human"}]}, "conversations[0].content is neither text"),
        ({"conversations": []}, "at least one message"),
        ({"conversations": 3}, "is not a list of turns"),
        ({"instruction": "a", "output": "b", "history": [["c", "d"]]}, "the key 'history' is not known"),
        ({"instruction": "a", "output": 3}, "output is not text"),
    ],
)
def test_what_is_in_no_shape_is_named(value: object, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        read_conversation(value)
    assert said in str(caught.value)


def test_a_key_that_stands_twice_is_an_error_and_the_values_after_it_follow() -> None:
    twice = '{"a": [{"b": 1, "b": 2}]}'
    with pytest.raises(ValueError, match="the key 'b' stands twice"):
        read_json(twice)
    found = list(iter_values(f"[1,\n{twice},\n3]"))
    assert [line for line, _ in found] == [1, 2, 3] and [value for _, value in found][::2] == [1, 3]
    assert "'b' stands twice" in str(found[1][1])


@pytest.mark.parametrize("text", ["[1, 2", "[1 2]", "[1,]", "[", "{", "[1] x", "1, 2"])
def test_text_that_is_no_json_is_an_error_at_its_place(text: str) -> None:
    with pytest.raises(json.JSONDecodeError):
        list(iter_values(text))


def test_empty_arrays_and_texts_hold_nothing() -> None:
    assert list(iter_values("[ ]")) == list(iter_values(" \n")) == []
