"""Parameters and FLOPs of a model, computed from its shape. Knows no torch.

Source of the FLOPs: Kaplan et al. 2020, section 2.1 (6 per parameter and token), plus attention as in PaLM, appendix B.
"""

from nanochat.model.config import GPTConfig


def count_matrices(config: GPTConfig) -> dict[tuple[int, int], int]:
    """How many matrices of each shape (rows, columns) the blocks hold."""
    width, kv_width = config.n_embd, config.n_kv_head * config.head_dim
    attention = [(width, width), (kv_width, width), (kv_width, width), (width, width)]
    counts: dict[tuple[int, int], int] = {}
    for shape in (*attention, (4 * width, width), (width, 4 * width)):
        counts[shape] = counts.get(shape, 0) + config.n_layer
    return counts


def count_params(config: GPTConfig) -> dict[str, int]:
    """Parameters by kind: embedding, head, matrices (inside the blocks), total."""
    matrices = sum(count * rows * columns for (rows, columns), count in count_matrices(config).items())
    table = config.padded_vocab_size * config.n_embd
    return {"embedding": table, "head": table, "matrices": matrices, "total": matrices + 2 * table}


def count_optimizer_values(config: GPTConfig, world_size: int = 1) -> int:
    """Numbers that the optimizer of the rank with most of them keeps: one a parameter for Muon, two for AdamW.

    Ranks own whole matrices of each shape and whole rows of the two tables.
    """
    matrices = sum(-(-count // world_size) * rows * cols for (rows, cols), count in count_matrices(config).items())
    return matrices + 2 * 2 * -(-config.padded_vocab_size // world_size) * config.n_embd


def flops_per_token(config: GPTConfig) -> int:
    """Training FLOPs (forward and backward) of one token in a full row; embedding look-ups cost none."""
    params = count_params(config)
    matmul = params["matrices"] + params["head"]
    return 6 * matmul + 12 * config.n_layer * config.n_head * config.head_dim * config.context
