"""The shape of a model. Knows no torch, so that plans are instant."""

from dataclasses import asdict, dataclass

MAX_SOFTCAP = 60.0  # exp of a capped logit, times any vocabulary, stays within float32


@dataclass(frozen=True)
class GPTConfig:
    """Sizes of a decoder-only Transformer; vocab_size counts the tokenizer's ids, without padding.

    Raises ValueError where the sizes do not fit each other.
    """

    n_layer: int
    n_embd: int
    n_head: int
    n_kv_head: int
    context: int
    vocab_size: int
    rope_base: float = 10_000.0
    softcap: float = 15.0

    def __post_init__(self) -> None:
        for name in ("n_layer", "n_embd", "n_head", "n_kv_head", "context", "vocab_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)} is less than 1")
        if not 0 < self.softcap <= MAX_SOFTCAP:
            raise ValueError(f"softcap = {self.softcap} is not in (0, {MAX_SOFTCAP:.0f}]")
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd = {self.n_embd} is not a multiple of n_head = {self.n_head}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim = {self.head_dim} is odd; rotary positions turn pairs")
        if self.n_head % self.n_kv_head:
            raise ValueError(f"n_head = {self.n_head} is not a multiple of n_kv_head = {self.n_kv_head}")

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding and the head: the next multiple of 64, which matrix units like."""
        return -(-self.vocab_size // 64) * 64

    @classmethod
    def from_depth(cls, depth: int, vocab_size: int, context: int = 2048, n_kv_head: int | None = None) -> "GPTConfig":
        """Derive every size from the one dial: width 64 x depth, heads of at most 128.

        The number of heads is ceil(width / 128), or the next larger one that gives whole, even heads (depth 19:
        10 -> 16).

        >>> config = GPTConfig.from_depth(20, 50304)
        >>> config.n_embd, config.n_head, config.head_dim
        (1280, 10, 128)
        """
        n_embd = 64 * depth
        n_head = -(-n_embd // 128)
        while n_embd % n_head or (n_embd // n_head) % 2:
            n_head += 1
        return cls(depth, n_embd, n_head, n_kv_head or n_head, context, vocab_size)

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "GPTConfig":
        return cls(**values)
