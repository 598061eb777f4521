"""Parameters and FLOPs of a model, computed from its shape. Knows no torch.

Source of the FLOPs: Kaplan et al. 2020, section 2.1 (6 per parameter and token), plus attention as in PaLM, appendix B.
"""

from nanochat.model.config import GPTConfig


def count_params(config: GPTConfig) -> dict[str, int]:
    """Parameters by kind: embedding, head, matrices (inside the blocks), total."""
    kv_width = config.n_kv_head * config.head_dim
    attention = 2 * config.n_embd * config.n_embd + 2 * config.n_embd * kv_width
    matrices = config.n_layer * (attention + 8 * config.n_embd * config.n_embd)
    table = config.padded_vocab_size * config.n_embd
    return {"embedding": table, "head": table, "matrices": matrices, "total": matrices + 2 * table}


def flops_per_token(config: GPTConfig) -> int:
    """Training FLOPs (forward and backward) of one token in a full row; embedding look-ups cost none."""
    params = count_params(config)
    matmul = params["matrices"] + params["head"]
    return 6 * matmul + 12 * config.n_layer * config.n_head * config.head_dim * config.context
