"""Fakes that the engine runs on: a byte tokenizer, a small exact model, a model that follows a script."""

import threading
from types import SimpleNamespace

import torch
import torch.nn.functional as F

from tests.patience import PATIENCE_SECONDS

SPECIAL_TOKENS = (
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
    """A token is a byte; special tokens follow."""

    vocab_size = 256 + len(SPECIAL_TOKENS)
    special_ids = {name: 256 + i for i, name in enumerate(SPECIAL_TOKENS)}
    bos_id = 256
    longest_token = 1

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode_bytes(self, ids: list[int]) -> bytes:
        return b"".join(bytes([i]) if i < 256 else SPECIAL_TOKENS[i - 256].encode() for i in ids)

    def decode(self, ids: list[int]) -> str:
        return self.decode_bytes(ids).decode(errors="replace")


class TinyModel(torch.nn.Module):
    """Two layers of grouped-query attention in float64, so that batching changes no sampled token.

    favoured: ids that it says more often than chance.
    """

    def __init__(
        self,
        vocab_size: int = 24,
        context: int = 64,
        n_head: int = 4,
        n_kv_head: int = 2,
        favoured: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        head_dim, n_layer = 4, 2
        width = n_head * head_dim
        self.config = SimpleNamespace(
            n_layer=n_layer,
            n_head=n_head,
            n_kv_head=n_kv_head,
            head_dim=head_dim,
            context=context,
            vocab_size=vocab_size,
        )
        self.compute_dtype = torch.float64
        self.num_positions_computed = 0
        generator = torch.Generator().manual_seed(0)

        def weight(rows: int, columns: int) -> torch.nn.Parameter:
            return torch.nn.Parameter(torch.randn(rows, columns, generator=generator, dtype=torch.float64))

        self.embedding, self.head = weight(vocab_size, width), weight(vocab_size, width)
        self.wave = weight(1, width)
        self.bias = torch.zeros(vocab_size, dtype=torch.float64)
        self.bias[list(favoured)] = 4.0
        self.qkv = torch.nn.ParameterList([weight((n_head + 2 * n_kv_head) * head_dim, width) for _ in range(n_layer)])

    def hidden(self, ids, cache=None):
        config = self.config
        self.num_positions_computed += ids.numel()
        positions = torch.arange(ids.shape[1])[None] if cache is None else cache.positions
        x = self.embedding[ids] + torch.sin(positions[..., None] * self.wave)
        for layer, qkv in enumerate(self.qkv):
            heads = F.linear(F.rms_norm(x, x.shape[-1:]), qkv).unflatten(-1, (-1, config.head_dim))
            q, k, v = heads.split([config.n_head, config.n_kv_head, config.n_kv_head], dim=2)
            if cache is not None:
                out = cache.attend(layer, q, k, v)
            else:
                transposed = (t.transpose(1, 2) for t in (q, k, v))
                out = F.scaled_dot_product_attention(*transposed, is_causal=True, enable_gqa=True).transpose(1, 2)
            x = x + out.flatten(2)
        return F.rms_norm(x, x.shape[-1:])

    def forward(self, ids, cache=None):
        return F.linear(self.hidden(ids, cache), self.head, self.bias).float()


class ScriptedModel(torch.nn.Module):
    """Says one script after another, an answer each, then `<|assistant_end|>`; text is bytes.

    pause_after: before token n of an answer the model waits for `resume` (for a while), so that a test
    can act in the middle of an answer.
    """

    def __init__(self, *scripts: list[str], context: int = 512, pause_after: int | None = None) -> None:
        super().__init__()
        tokenizer = ByteTokenizer()
        self.config = SimpleNamespace(n_layer=1, n_head=1, n_kv_head=1, head_dim=2, context=context, vocab_size=265)
        self.compute_dtype = torch.float32
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.scripts = []
        for script in scripts:
            ids: list[int] = []
            for piece in script:
                special = tokenizer.special_ids.get(piece)
                ids += tokenizer.encode(piece) if special is None else [special]
            self.scripts.append([*ids, tokenizer.special_ids["<|assistant_end|>"]])
        self.answer, self.place, self.in_output = -1, 0, False
        self.script = self.scripts[0]
        self.pause_after, self.paused, self.resume = pause_after, threading.Event(), threading.Event()

    def hidden(self, ids, cache=None):
        return torch.zeros(*ids.shape, 2)

    def forward(self, ids, cache=None):
        token = int(ids[0, -1])
        if token == ByteTokenizer.special_ids["<|assistant_start|>"]:
            self.answer, self.place, self.in_output = self.answer + 1, 0, False
            self.script = self.scripts[self.answer % len(self.scripts)]
        elif not self.in_output and token == self.script[self.place]:
            self.place += 1
        else:  # a tool forced it
            self.in_output = token != ByteTokenizer.special_ids["<|output_end|>"]
        if self.place == self.pause_after:
            self.paused.set()
            self.resume.wait(PATIENCE_SECONDS)
        logits = torch.full((1, 1, 265), -1e9)
        logits[0, 0, self.script[self.place]] = 0.0
        return logits
