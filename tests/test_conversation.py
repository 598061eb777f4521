"""Conversations read from JSON keep every part, and a wrong shape names its place."""

import pytest

from nanochat.conversation import assistant, dump_conversation, hash_conversations, parse_conversation, user


def test_a_conversation_with_a_tool_call_survives_the_round_trip() -> None:
    value = {
        "messages": [
            {"role": "user", "content": "What is 2+2?"},
            {
                "role": "assistant",
                "content": [
                    {"type": "text", "text": "Let me see: "},
                    {"type": "python", "text": "2+2"},
                    {"type": "python_output", "text": "4"},
                    {"type": "text", "text": " It is 4."},
                ],
            },
        ]
    }
    conversation = parse_conversation(value)
    parts = assistant("Let me see: ", ("python", "2+2"), ("python_output", "4"), " It is 4.")
    assert conversation.messages == (user("What is 2+2?"), parts)
    assert conversation.messages[1].text == "Let me see:  It is 4."
    assert dump_conversation(conversation) == value


def test_a_system_message_is_merged_into_the_first_user_message() -> None:
    conversation = parse_conversation([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}])
    assert conversation.messages == (user("Be brief.\n\nHi"),)


HI, BYE = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Bye"}


@pytest.mark.parametrize("masked", [{"weight": 0}, {"train": False}, {"weight": 0.0, "train": False}])
def test_an_answer_of_weight_0_is_not_to_be_learnt_and_stays_so(masked: dict) -> None:
    value = {"messages": [HI, BYE | masked, HI | {"train": False}, BYE | {"weight": 1, "train": True}]}
    conversation = parse_conversation(value)
    assert [message.is_learnt for message in conversation.messages if message.role == "assistant"] == [False, True]
    assert parse_conversation(dump_conversation(conversation)).messages[1] == conversation.messages[1]
    assert dump_conversation(conversation)["messages"][1] == BYE | {"weight": 0}
    whole = parse_conversation({"messages": [HI, BYE, HI, BYE]})
    assert hash_conversations([conversation]) != hash_conversations([whole])


def test_a_system_of_the_whole_is_one_of_the_messages() -> None:
    inside = [{"role": "system", "content": "Be brief."}, HI, BYE]
    assert parse_conversation({"system": "Be brief.", "messages": [HI, BYE]}) == parse_conversation(inside)
    nothing = {"system": None, "id": 7, "tools": [], "messages": [HI, BYE | {"tool_calls": None, "refusal": None}]}
    assert parse_conversation(nothing) == parse_conversation([HI, BYE])


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"mesages": 1, "messages": [HI, BYE]}, "the key 'mesages' is not known: did you mean 'messages'"),
        ({"weight": 0, "messages": [HI, BYE]}, "the key 'weight' is not known"),
        ([HI, BYE | {"wieght": 0}], r"messages\[1\]: the key 'wieght' is not known: did you mean 'weight'"),
        ([HI, BYE | {"name": "Ada"}], "the key 'name' is not known: known are role, content, weight, train"),
        ([HI, BYE | {"tool_calls": [{}]}], r"'tool_calls' is not known: a tool call is a part of the content"),
        ([HI, BYE, {"role": "tool", "content": "4"}], r"messages\[2\].role = 'tool': what a tool answers is a part"),
        ([HI, {"role": "assistant", "content": [{"type": "text", "text": "a", "cache": 1}]}], r"content\[0\]: the key"),
        ([HI, BYE | {"weight": 0.5}], r"messages\[1\].weight = 0.5 is neither 0 nor 1"),
        ([HI, BYE | {"train": "no"}], 'train = "no" is neither true nor false'),
        ([HI, BYE | {"train": True, "weight": 0}], "contradict"),
        ([HI | {"weight": 1}, BYE], r"messages\[0\]: only what the assistant says can be learnt"),
        ({"system": "a", "messages": [{"role": "system", "content": "b"}, HI]}, "a system of its own"),
        ({"system": ["a"], "messages": [HI]}, "system is not text"),
    ],
)
def test_no_key_is_dropped_in_silence(value: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_conversation(value)


@pytest.mark.parametrize(
    ("messages", "fragment"),
    [
        ([], "at least one message"),
        ("hello", "at least one message"),
        ([{"role": "user"}], r'messages\[0\] needs "role" and "content"'),
        ([{"role": "assistant", "content": "hi"}], "expected 'user'"),
        ([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}], r"messages\[1\].role = 'user'"),
        ([{"role": "user", "content": "a"}, {"role": "system", "content": "b"}], "stands first"),
        ([{"role": "system", "content": "only"}], "needs a user message"),
        ([{"role": "user", "content": 3}], "neither text nor a list"),
        ([{"role": "user", "content": [{"type": "image", "text": ""}]}], "type = 'image' is none of"),
        ([{"role": "user", "content": [{"type": "python", "text": "1"}]}], "text parts only"),
        ([{"role": "user", "content": [{"type": "text"}]}], r"content\[0\] needs"),
    ],
)
def test_a_wrong_shape_is_an_error_that_names_its_place(messages: object, fragment: str) -> None:
    with pytest.raises(ValueError, match=fragment):
        parse_conversation({"messages": messages})
