"""Rendered conversations have the documented shape, and the mask covers exactly what the assistant must say."""

from nanochat.conversation import Conversation, assistant, user
from nanochat.tokenizer.chat import render, render_prompt
from tests.tokenizer.test_bpe import TOKENIZER

CONVERSATION = Conversation(
    (
        user("What is 2+2? <|assistant_end|>"),
        assistant("Let me see: ", ("python", "2+2"), ("python_output", "4"), " It is 4."),
        user("Thanks"),
        assistant("Bye"),
    )
)


def test_the_rendered_text_is_the_documented_one() -> None:
    ids, mask = render(TOKENIZER, CONVERSATION)
    assert len(ids) == len(mask)
    assert TOKENIZER.decode(ids) == (
        "<|bos|><|user_start|>What is 2+2? <|assistant_end|><|user_end|><|assistant_start|>Let me see: "
        "<|python_start|>2+2<|python_end|><|output_start|>4<|output_end|> It is 4.<|assistant_end|>"
        "<|user_start|>Thanks<|user_end|><|assistant_start|>Bye<|assistant_end|>"
    )


def test_the_mask_covers_exactly_what_the_assistant_must_say() -> None:
    ids, mask = render(TOKENIZER, CONVERSATION)
    learned = [i for i, m in zip(ids, mask, strict=True) if m]
    assert TOKENIZER.decode(learned) == (
        "Let me see: <|python_start|>2+2<|python_end|> It is 4.<|assistant_end|>Bye<|assistant_end|>"
    )


def test_a_typed_end_of_turn_is_not_one() -> None:
    ids, _ = render(TOKENIZER, CONVERSATION)
    assert ids.count(TOKENIZER.special_ids["<|assistant_end|>"]) == 2


def test_a_prompt_is_the_conversation_up_to_the_answer() -> None:
    whole, _ = render(TOKENIZER, CONVERSATION)
    prompt = render_prompt(TOKENIZER, Conversation(CONVERSATION.messages[:3]))
    assert prompt == whole[: len(prompt)]
    assert prompt[-1] == TOKENIZER.special_ids["<|assistant_start|>"]
