"""Memory of a training step on one device, by what holds it, computed from the model's shape. Knows no torch.

Every figure is what trainer and model really allocate: see optim.py, loss.py and training/loop.py. What libraries and
the driver take on a GPU (0.5 to 2 GB) is not in it. On a CPU they share the memory of the tensors, so there they are.
"""

import math
from dataclasses import dataclass

from nanochat.model.accounting import count_optimizer_values, count_params
from nanochat.model.config import GPTConfig

EAGER_BLOCK_BYTES = 36
"""What a block keeps in bf16 for backward, per token and channel of the width; measured: tests/test_plan.py."""
COMPILED_BLOCK_BYTES = 30
"""The same of a compiled block, which computes some of it again (measured with saved_tensors_hooks, torch 2.15)."""
EAGER_KV_BYTES, COMPILED_KV_BYTES = 8, 6
"""On top, where there are as many key and value heads as heads; in proportion where there are fewer."""
OUTSIDE_BYTES = 10
"""The same, once, outside the blocks: the loss is computed in chunks and keeps no logits."""
BACKWARD_BYTES = 28
"""What the backward pass of one block holds beside that: three tensors of the MLP's inner width, two of the outer."""
CHUNK_LOGITS = {"cpu": 1 << 22, "cuda": 1 << 27}
"""Most logits of a chunk of the loss: as in loss.py, which loads torch."""
EAGER_LOGIT_BYTES, COMPILED_LOGIT_BYTES = 16, 6
"""Per logit of a chunk: eager in bf16 and three float32 tables, compiled in bf16, its gradient and what is rounded."""
HEAD_BYTES = 12
"""Per weight of the head in the loss: the summed gradient, its scaled copy and that copy padded, in float32."""
MUON_BYTES = 20
"""Per weight of the largest group that Muon updates at once: two float32 stacks, the bf16 products and the result."""
CPU_SCORE_BYTES = 10
"""Per attention score that a CPU keeps, in float32; scores are written out up to CPU_SCORES_CONTEXT."""
CPU_SCORES_CONTEXT, CPU_BLOCK_TOKENS = 1024, 256
"""As in attention.py, which loads torch."""
CPU_PROCESS_BYTES = 350_000_000
"""What a process on a CPU takes beside tensors as it trains: pages of torch, the compiler, freed memory that is kept.
Measured on demo, d6 and benchmarks/real_text.toml, compiled and not: 340 to 380 MB (torch 2.15)."""
TEXT_BYTES = 23
"""Per byte of the largest row group of the text: its texts, their ids and the rows that they are packed into."""
MARGIN = 0.05
"""Share of a device that is to stay free: fragments, the collectives' buffers, and what another library asks for."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one device at the worst moment of a step; working is what that moment needs beside what stays.

    weights: float32, and the copies in the compute type. activations: what backward keeps of all blocks. process: what
    is no tensor, on a CPU: libraries, the compiler, text.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    working: int
    process: int = 0

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    @property
    def parts(self) -> dict[str, int]:
        """Bytes by what holds them, without what holds none."""
        return {name: size for name, size in vars(self).items() if size}


def estimate_memory(
    config: GPTConfig,
    rows: int,
    world_size: int = 1,
    *,
    compiled: bool = False,
    element_bytes: int = 2,
    device: str = "cuda",
    group_bytes: int = 0,
) -> MemoryEstimate:
    """Memory of one device in training. element_bytes: of the compute type, 2 for bf16. device: "cpu" or any other.
    group_bytes: of the largest row group of the pretraining text, if the stage reads any.

    Of the optimizer's state it counts the share of the device that has most of it.
    """
    params = count_params(config)
    tokens, width = rows * config.context, config.n_embd
    wide = element_bytes / 2  # the figures above are of bf16
    share = config.n_kv_head / config.n_head
    if compiled:
        block, logit = COMPILED_BLOCK_BYTES + COMPILED_KV_BYTES * share, COMPILED_LOGIT_BYTES
    else:
        block, logit = EAGER_BLOCK_BYTES + EAGER_KV_BYTES * share, EAGER_LOGIT_BYTES
    activations = tokens * width * wide * (block * config.n_layer + OUTSIDE_BYTES)
    if device == "cpu" and config.context <= CPU_SCORES_CONTEXT:
        scores = config.context * (config.context + min(config.context, CPU_BLOCK_TOKENS)) // 2
        activations += CPU_SCORE_BYTES * rows * config.n_head * config.n_layer * scores
    chunk = min(tokens * config.vocab_size, CHUNK_LOGITS["cpu" if device == "cpu" else "cuda"])
    loss = chunk * logit * wide + HEAD_BYTES * params["head"]
    backward = tokens * width * wide * BACKWARD_BYTES
    # Muon stacks matrices of a shape; up and down are the largest. No activations are left by then.
    update = MUON_BYTES * math.ceil(4 * width * width * config.n_layer / world_size) - activations
    return MemoryEstimate(
        weights=4 * params["total"] + (element_bytes * params["matrices"] if element_bytes < 4 else 0),
        gradients=4 * params["total"],
        optimizer=4 * count_optimizer_values(config, world_size),
        activations=math.ceil(activations),
        working=math.ceil(max(loss, backward, update)),
        process=CPU_PROCESS_BYTES + TEXT_BYTES * group_bytes if device == "cpu" else 0,
    )


def list_rows(total_tokens: int, context: int, world_size: int) -> list[int]:
    """The rows of a device that divide a step of total_tokens, fewest first; [] where not even one row does.

    >>> list_rows(524_288, 2_048, 8), list_rows(500, 64, 1)
    ([1, 2, 4, 8, 16, 32], [])
    """
    rows, rest = divmod(total_tokens, context * world_size)
    return [] if rest else [n for n in range(1, rows + 1) if rows % n == 0]
