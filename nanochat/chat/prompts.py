"""A conversation as a prompt that leaves room for an answer: its oldest turns go where all do not fit.

Knows a tokenizer and no model.
"""

from collections.abc import Sequence

from nanochat.conversation import Message, user
from nanochat.errors import UsageError
from nanochat.tokenizer.chat import Encoder, count_at_least, render_message


def fit_prompt(
    tokenizer: Encoder, messages: Sequence[Message], system: str, max_context: int, room: int, num_unseen: int = 0
) -> tuple[list[int], int]:
    """Ids of the prompt, and how many of the oldest messages it does without.

    messages: whole turns, then the question; or an answer at the end, which is to be continued. room: tokens that
    should be left of max_context for the answer; a single turn may leave less, but one. num_unseen: messages that an
    earlier prompt left out already, so that its cache stays of use.
    Raises UsageError where the last turn alone does not fit.
    """
    last = len(messages) - 1
    what = "the message and the system prompt take" if system else "the message takes"
    hint = "send a shorter message" + (", or choose a shorter system prompt" if system else "")
    least = count_at_least(tokenizer, len(system) + len(messages[last].text))
    if least >= max_context:  # it is not encoded to find that out
        raise UsageError(f"{what} at least {least} tokens; the context is {max_context}", hint)
    if messages[last].role == "user":
        first, after = last, [tokenizer.special_ids["<|assistant_start|>"]]
    else:
        first, after = last - 1, render_message(tokenizer, messages[last])[0][:-1]  # without its end

    def begin_with(first: int) -> list[int]:
        question = messages[first] if not system else user(f"{system}\n\n{messages[first].text}")
        return [tokenizer.special_ids["<|bos|>"], *render_message(tokenizer, question)[0], *after]

    prompt = begin_with(first)
    if len(prompt) >= max_context:
        raise UsageError(f"{what} {len(prompt)} tokens with its markers; the context is {max_context}", hint)
    # From the newest turn to older ones, so that a long conversation costs no more than what fits of it.
    while first - 2 >= num_unseen:
        num_chars = len(messages[first - 1].text) + len(messages[first - 2].text)
        if count_at_least(tokenizer, num_chars) > max_context:
            break
        for message in (messages[first], messages[first - 1]):
            after = [*render_message(tokenizer, message)[0], *after]
        longer = begin_with(first - 2)
        if len(longer) + room > max_context:
            break
        prompt, first = longer, first - 2
    return prompt, first


def describe_unseen(num_unseen: int) -> str:
    """What to tell the user about messages that were left out; "" where none were.

    >>> describe_unseen(2)
    'The conversation is longer than the context: the model no longer sees the 1 oldest turn.'
    """
    if not num_unseen:
        return ""
    turns = f"{num_unseen // 2} oldest turn{'s' if num_unseen > 2 else ''}"
    return f"The conversation is longer than the context: the model no longer sees the {turns}."
