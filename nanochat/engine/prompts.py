"""A conversation as a prompt that leaves room for an answer: its oldest turns go where all do not fit.

Knows a tokenizer and no model.
"""

from collections.abc import Sequence

from nanochat.conversation import Conversation, Message, user
from nanochat.errors import UsageError
from nanochat.tokenizer.chat import Encoder, render, render_prompt


def fit_prompt(
    tokenizer: Encoder, messages: Sequence[Message], system: str, max_context: int, room: int, num_unseen: int = 0
) -> tuple[list[int], int]:
    """Ids of the prompt, and how many of the oldest messages it does without.

    messages: whole turns, then the question; or an answer at the end, which is to be gone on with. room: tokens that
    should be left of max_context for the answer; a single turn may leave less, but one. num_unseen: messages that an
    earlier prompt left out already, so that its cache stays of use.
    Raises UsageError where the last turn alone does not fit.
    """
    while True:
        seen = list(messages[num_unseen:])
        if system:
            seen[0] = user(f"{system}\n\n{seen[0].text}")
        conversation = Conversation(tuple(seen))
        if seen[-1].role == "user":
            prompt = render_prompt(tokenizer, conversation)
        else:
            prompt = render(tokenizer, conversation)[0][:-1]  # without its end
        if len(prompt) + room <= max_context:
            return prompt, num_unseen
        if len(seen) <= 2:
            if len(prompt) < max_context:
                return prompt, num_unseen
            what = "the message and the system prompt take" if system else "the message takes"
            raise UsageError(
                f"{what} {len(prompt)} tokens with its markers; the context is {max_context}",
                "send a shorter message" + (", or choose a shorter system prompt" if system else ""),
            )
        num_unseen += 2


def describe_unseen(num_unseen: int) -> str:
    """What to tell the user about messages that were left out; "" where none were.

    >>> describe_unseen(2)
    'The conversation is longer than the context: the model no longer sees the 1 oldest turn.'
    """
    if not num_unseen:
        return ""
    turns = f"{num_unseen // 2} oldest turn{'s' if num_unseen > 2 else ''}"
    return f"The conversation is longer than the context: the model no longer sees the {turns}."
