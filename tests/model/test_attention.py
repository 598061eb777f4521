"""Attention by blocks against torch's own."""

import pytest
import torch

from nanochat.model import attention
from nanochat.model.attention import CPU_BLOCK_TOKENS, CPU_BLOCKS_CONTEXT, attend, attend_by_blocks, normalize


@pytest.mark.parametrize("num_tokens", [1, 7, CPU_BLOCK_TOKENS, CPU_BLOCK_TOKENS + 1, 2 * CPU_BLOCK_TOKENS + 5])
@pytest.mark.parametrize("n_kv_head", [4, 2, 1])
def test_blocks_give_torchs_attention_and_gradients(num_tokens: int, n_kv_head: int) -> None:
    shapes = [(2, num_tokens, heads, 8) for heads in (4, n_kv_head, n_kv_head)]
    ours = [torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in shapes]
    theirs = [tensor.detach().clone().requires_grad_() for tensor in ours]
    q, k, v = ours
    y = attend_by_blocks(normalize(q), normalize(k), v)
    q, k, v = theirs
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (normalize(q), normalize(k), v)), is_causal=True, enable_gqa=True
    ).transpose(1, 2)
    torch.testing.assert_close(y, expected)
    seed = torch.randn_like(y)
    y.backward(seed)
    expected.backward(seed)
    for tensor, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(tensor.grad, other.grad)


def test_the_largest_scores_stay_finite_in_bfloat16() -> None:
    row = normalize(torch.ones(1, 300, 1, 128)).bfloat16()  # every score is the largest that is possible
    y = attend_by_blocks(row, row, torch.ones_like(row))
    torch.testing.assert_close(y, torch.ones_like(row))


def test_long_contexts_use_torchs_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "CPU_BLOCKS_CONTEXT", 16)
    assert CPU_BLOCKS_CONTEXT > 16
    q = normalize(torch.randn(1, 40, 2, 8))
    long = attend(q, q, q)
    torch.testing.assert_close(long, attend_by_blocks(q, q, q))
