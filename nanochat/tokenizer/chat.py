"""Conversations as ids with the mask of what the model must learn to say. Knows no files and no training."""

from typing import Protocol

from nanochat.conversation import Conversation, Message


class Encoder(Protocol):
    """What rendering needs of a tokenizer."""

    special_ids: dict[str, int]
    longest_token: int
    """In bytes."""

    def encode(self, text: str) -> list[int]: ...


def count_at_least(tokenizer: Encoder, num_chars: int) -> int:
    """How few tokens a text of so many characters can have: a character has a byte or more."""
    return -(-num_chars // tokenizer.longest_token)


DELIMITERS = {
    "python": ("<|python_start|>", "<|python_end|>", True),
    "python_output": ("<|output_start|>", "<|output_end|>", False),
}
"""Part kind to its opening token, its closing token and whether the assistant produces them and what is between."""


def render(tokenizer: Encoder, conversation: Conversation) -> tuple[list[int], list[int]]:
    """Ids of a conversation and their mask, of equal length.

    The mask is 1 on what the assistant must produce (its text, its tool calls with their delimiters and
    `<|assistant_end|>`) and 0 on the user, on `<|assistant_start|>`, on tool output and on whole messages that are not
    `is_learnt`.
    """
    ids, mask = [tokenizer.special_ids["<|bos|>"]], [0]
    for message in conversation.messages:
        some_ids, some_mask = render_message(tokenizer, message)
        ids += some_ids
        mask += some_mask
    return ids, mask


def render_message(tokenizer: Encoder, message: Message) -> tuple[list[int], list[int]]:
    """Ids and mask of one message, which do not depend on those before it."""
    special = tokenizer.special_ids
    ids, mask = [special[f"<|{message.role}_start|>"]], [0]

    def append(pieces: list[int], produced: bool = True) -> None:
        ids.extend(pieces)
        mask.extend([int(is_learnt and produced)] * len(pieces))

    is_learnt = message.role == "assistant" and message.is_learnt
    for part in message.parts:
        if part.kind == "text":
            append(tokenizer.encode(part.text))
        else:
            start, end, produced = DELIMITERS[part.kind]
            append([special[start], *tokenizer.encode(part.text), special[end]], produced)
    append([special[f"<|{message.role}_end|>"]])
    return ids, mask


def render_prompt(tokenizer: Encoder, conversation: Conversation) -> list[int]:
    """Ids of a conversation that ends with the user, up to and with `<|assistant_start|>`."""
    ids, _ = render(tokenizer, conversation)
    return [*ids, tokenizer.special_ids["<|assistant_start|>"]]
