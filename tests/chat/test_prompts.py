"""Prompts that fit, against the plain way: render everything and drop turns until it does."""

import random

import pytest

from nanochat.chat.prompts import fit_prompt
from nanochat.conversation import Conversation, Message, Part, user
from nanochat.errors import UsageError
from nanochat.tokenizer.chat import render, render_prompt
from tests.engine.fakes import ByteTokenizer

TOKENIZER = ByteTokenizer()


def plainly(messages, system, max_context, room, num_unseen):
    while True:
        seen = list(messages[num_unseen:])
        if system:
            seen[0] = user(f"{system}\n\n{seen[0].text}")
        is_question = seen[-1].role == "user"
        conversation = Conversation(tuple(seen))
        prompt = render_prompt(TOKENIZER, conversation) if is_question else render(TOKENIZER, conversation)[0][:-1]
        if len(prompt) + room <= max_context or len(seen) <= 2:
            return (prompt, num_unseen) if len(prompt) < max_context else None
        num_unseen += 2


@pytest.mark.parametrize("seed", range(200))
def test_it_equals_the_plain_way(seed: int) -> None:
    random_ = random.Random(seed)
    num = random_.randrange(1, 12)
    messages = [
        user("q" * random_.randrange(1, 20))
        if place % 2 == 0
        else Message("assistant", (Part("text", "a" * random_.randrange(20)), Part("python", "1+1")))
        for place in range(num)
    ]
    system = random_.choice(["", "Be brief."])
    max_context, room = random_.randrange(30, 200), random_.randrange(0, 30)
    num_unseen = 2 * random_.randrange(0, max(1, (num - 1) // 2))
    expected = plainly(messages, system, max_context, room, num_unseen)
    if expected is None:
        with pytest.raises(UsageError, match="the context is"):
            fit_prompt(TOKENIZER, messages, system, max_context, room, num_unseen)
    else:
        assert fit_prompt(TOKENIZER, messages, system, max_context, room, num_unseen) == expected


class Counting(ByteTokenizer):
    num = 0

    def encode(self, text: str) -> list[int]:
        self.num += 1
        return super().encode(text)


def test_what_does_not_fit_of_a_long_conversation_is_not_read() -> None:
    tokenizer = Counting()
    messages = [user("q"), Message("assistant", (Part("text", "a"),))] * 5000
    fit_prompt(tokenizer, [*messages, user("q")], "", 256, 64)
    assert tokenizer.num < 200
    tokenizer.num = 0
    long = [user("q" * 10**6), Message("assistant", (Part("text", "a"),)), user("q")]
    assert fit_prompt(tokenizer, long, "", 256, 64)[1] == 2 and tokenizer.num == 1


@pytest.mark.parametrize(("text", "system"), [("q" * 10**6, ""), ("q", "s" * 10**6)])
def test_a_message_that_cannot_fit_is_refused_before_it_is_read(text: str, system: str) -> None:
    tokenizer = Counting()
    with pytest.raises(UsageError, match="at least 100000[01] tokens; the context is 256"):
        fit_prompt(tokenizer, [user(text)], system, 256, 64)
    assert tokenizer.num == 0
