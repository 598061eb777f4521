"""The decoder-only Transformer. Knows tensors only: not how it is trained, where it runs or what its ids mean.

The architecture is the one that transformers ships as `NanoChatForCausalLM`; see hf.py for its names.

Legend: B batch, T tokens, C width, V vocabulary.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanochat.model.attention import Attention, Cache, Linear, build_rotation, normalize
from nanochat.model.config import GPTConfig
from nanochat.model.loss import (
    ChunkLoss,
    capped_logits,
    compute_chunk_loss,
    softcap_cross_entropy,
    softcap_token_nll,
)


class MLP(nn.Module):
    """Four times as wide inside, with squared ReLU (So et al. 2021); the output projection starts at zero."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.up = Linear(config.n_embd, 4 * config.n_embd)
        self.down = Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.relu(self.up(x)).square())


class Block(nn.Module):
    """Attention, then MLP, each on the normalised stream and added to it."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.attention = Attention(config, layer)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], cache: Cache | None) -> Tensor:
        x = x + self.attention(normalize(x), rotation, cache)
        return x + self.mlp(normalize(x))


BlockFunction = Callable[[nn.Module, Tensor, tuple[Tensor, Tensor], Cache | None], Tensor]


def run_block(block: nn.Module, x: Tensor, rotation: tuple[Tensor, Tensor], cache: Cache | None) -> Tensor:
    """Call a block: a function of its own, so that one compilation serves all blocks."""
    return block(x, rotation, cache)


class GPT(nn.Module):
    """Ids to logits. `compute_dtype` is the type of the activations.

    Weights are float32 to be trained; `cast_weights` gives a model for inference.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype = torch.float32
        # With its own initial values it would load torch's compiler, which takes a second where nothing is compiled.
        table = torch.empty(config.padded_vocab_size, config.n_embd)
        self.embedding = nn.Embedding.from_pretrained(table, freeze=False)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.head = Linear(config.n_embd, config.padded_vocab_size)

    def init_weights(self, seed: int) -> None:
        """Set every weight from one seed, the same on every machine with this torch version.

        Linear layers are normal with std 1 / sqrt(fan_in) * min(1, sqrt(fan_out / fan_in)) (Yang et al. 2023), the
        embedding has std 1; the head and both output projections are zero.
        """
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.endswith(("head.weight", "out.weight", "down.weight")):
                    parameter.zero_()
                    continue
                fan_out, fan_in = parameter.shape
                std = 1.0 if name == "embedding.weight" else min(1.0, math.sqrt(fan_out / fan_in)) / math.sqrt(fan_in)
                parameter.copy_(torch.randn(fan_out, fan_in, generator=generator) * std)

    @property
    def head_weight(self) -> Tensor:
        """The head's rows of real ids, (V, C): padding takes no part in the softmax."""
        return self.head.weight[: self.config.vocab_size]

    def cast_weights(self) -> "GPT":
        """A model for inference whose weights are in compute_dtype: the same bits, with no cast for every token.

        A copy of what the weights are now; the model itself, if they are of that type.
        """
        if self.head.weight.dtype == self.compute_dtype:
            return self
        with torch.device("meta"):
            model = GPT(self.config)
        model.compute_dtype = self.compute_dtype
        state = {name: weight.to(self.compute_dtype) for name, weight in self.state_dict().items()}
        model.load_state_dict(state, assign=True)
        return model.requires_grad_(False).eval()

    def hidden(self, ids: Tensor, cache: Cache | None = None, run_block: BlockFunction = run_block) -> Tensor:
        """Final normalised states (B, T, C) in compute_dtype of ids (B, T) int64. run_block: compiled or not."""
        positions = torch.arange(ids.size(1), device=ids.device)[None] if cache is None else cache.positions
        x = normalize(self.embedding(ids).to(self.compute_dtype))
        rotation = build_rotation(positions, self.config.head_dim, self.config.rope_base, x.dtype)
        for block in self.blocks:
            x = run_block(block, x, rotation, cache)
        return normalize(x)

    def forward(self, ids: Tensor, cache: Cache | None = None) -> Tensor:
        """Logits (B, T, V) float32, soft-capped."""
        return capped_logits(self.hidden(ids, cache), self.head_weight, self.config.softcap)

    def loss(self, ids: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Summed loss in nats over the targets (B, T) int64 that are not IGNORED: a float32 scalar."""
        return self._loss(self.hidden(ids), targets, weights)

    def compile_loss(self) -> Callable[..., Tensor]:
        """The function `loss`, compiled: one block, which serves for all of them, and one chunk of the head.

        Starting takes as long for 32 blocks as for one. Compiles at its first call, where torch may raise the errors of
        its compiler, and once more for every other shape.
        """
        block = torch.compile(run_block, dynamic=False)
        chunk_loss = torch.compile(compute_chunk_loss, dynamic=False)

        def loss(ids: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
            return self._loss(self.hidden(ids, run_block=block), targets, weights, chunk_loss)

        return loss

    def _loss(
        self, hidden: Tensor, targets: Tensor, weights: Tensor | None, chunk_loss: ChunkLoss | None = None
    ) -> Tensor:
        return softcap_cross_entropy(
            hidden.flatten(0, 1),
            self.head_weight,
            targets.flatten(),
            None if weights is None else weights.flatten(),
            self.config.softcap,
            chunk_loss=chunk_loss,
        )

    def token_nll(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Negative log-likelihood in nats of each target, (B, T) float32; 0 where IGNORED. No gradient."""
        with torch.no_grad():
            hidden = self.hidden(ids).flatten(0, 1)
            nll = softcap_token_nll(hidden, self.head_weight, targets.flatten(), self.config.softcap)
        return nll.view_as(targets)
