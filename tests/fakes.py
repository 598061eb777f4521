"""Small stand-ins that obey our protocols."""

SPECIAL_NAMES = (
    "<|bos|>",
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    "<|assistant_end|>",
    "<|python_start|>",
    "<|python_end|>",
    "<|output_start|>",
    "<|output_end|>",
)


class ByteTokenizer:
    """A token a byte, then the nine special tokens: 265 ids."""

    vocab_size = 265
    special_ids = {name: 256 + index for index, name in enumerate(SPECIAL_NAMES)}
    bos_id = 256
    token_bytes = [1] * 256 + [0] * 9
    hash = "bytes"

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode_bytes(self, ids: list[int]) -> bytes:
        return b"".join(bytes([token]) if token < 256 else SPECIAL_NAMES[token - 256].encode() for token in ids)

    def decode(self, ids: list[int]) -> str:
        return self.decode_bytes(ids).decode(errors="replace")
