"""Our merges as a `tokenizers.Tokenizer`, whose tokenizer.json any Hugging Face library reads, and its settings."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nanochat.tokenizer.template import build_chat_template

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def build_unicode_of_byte() -> dict[int, str]:
    """The printable character that stands for each byte in byte-level vocabularies (Radford et al. 2019).

    Printable Latin-1 stands for itself; the other bytes take the code points from 256 on, in order.

    >>> build_unicode_of_byte()[ord("a")], build_unicode_of_byte()[ord(" ")]
    ('a', '\u0120')
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {byte: chr(byte) for byte in printable} | {byte: chr(256 + index) for index, byte in enumerate(others)}
    return {byte: table[byte] for byte in range(256)}


UNICODE_OF_BYTE = build_unicode_of_byte()


def build_huggingface(merges: Sequence[tuple[int, int]], pattern: str, special_ids: Mapping[str, int]) -> "Tokenizer":
    """A tokenizers.Tokenizer with the same ids; special_ids are added as special tokens (empty: none)."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    names = [UNICODE_OF_BYTE[byte] for byte in range(256)]
    pairs = []
    for left, right in merges:
        pairs.append((names[left], names[right]))
        names.append(names[left] + names[right])
    vocabulary = {name: index for index, name in enumerate(names)}
    # ignore_merges must stay off: a piece that is a token may still be reached by other merges first.
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, fuse_unk=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    if special_ids:
        ordered = sorted(special_ids, key=lambda name: special_ids[name])
        tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in ordered])
    return tokenizer


def build_exported(merges: Sequence[tuple[int, int]], pattern: str, special_ids: Mapping[str, int]) -> "Tokenizer":
    """A tokenizers.Tokenizer that begins a text with `<|bos|>`, as every document of the training data begins.

    Unlike ours it takes a typed special token for one: that is how templates write them.
    """
    from tokenizers import processors

    tokenizer = build_huggingface(merges, pattern, special_ids)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", pair="<|bos|> $A <|bos|> $B", special_tokens=[("<|bos|>", special_ids["<|bos|>"])]
    )  # pyright: ignore[reportAttributeAccessIssue]
    return tokenizer


def build_tokenizer_config(context: int, is_chat: bool) -> dict[str, Any]:
    """Values of tokenizer_config.json. is_chat: whether the model has learnt conversations."""
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": context,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "bos_token": "<|bos|>",
        "eos_token": "<|assistant_end|>" if is_chat else "<|bos|>",
        "pad_token": "<|bos|>",
    }
    return config | {"chat_template": build_chat_template()} if is_chat else config
