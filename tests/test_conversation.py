"""Conversations read from JSON keep every part, and a wrong shape names its place."""

import pytest

from nanochat.conversation import assistant, dump_conversation, parse_conversation, user


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
