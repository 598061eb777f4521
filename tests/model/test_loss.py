"""The chunked loss is the plain one, with the same gradients."""

import pytest
import torch
import torch.nn.functional as F

from nanochat.model.loss import (
    IGNORED,
    compute_chunk_loss,
    plan_chunk_tokens,
    softcap_cross_entropy,
    softcap_token_nll,
)


def plain_loss(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None):
    logits = 15 * torch.tanh(hidden @ weight.T / 15)
    nll = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")
    return (nll if weights is None else nll * weights).sum()


@pytest.mark.parametrize("chunk", [1, 7, 50, 64])
@pytest.mark.parametrize("weighted", [False, True])
def test_loss_and_gradients_equal_the_plain_version(chunk: int, weighted: bool) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(50, 16), torch.randn(33, 16)
    targets = torch.randint(33, (50,))
    targets[::5] = IGNORED
    weights = torch.randn(50) if weighted else None
    ours = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    theirs = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    loss = softcap_cross_entropy(*ours, targets, weights, chunk_tokens=chunk)
    expected = plain_loss(*theirs, targets, weights)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    (loss / 3).backward()
    (expected / 3).backward()
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our.grad, their.grad, rtol=1e-4, atol=1e-6)


def test_a_batch_without_targets_costs_nothing_and_moves_nothing() -> None:
    hidden, weight = torch.randn(8, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
    loss = softcap_cross_entropy(hidden, weight, torch.full((8,), IGNORED))
    loss.backward()
    assert loss.item() == 0
    assert hidden.grad is not None and not hidden.grad.any()
    assert weight.grad is not None and not weight.grad.any()


def test_token_losses_sum_to_the_loss() -> None:
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(20, 4), torch.randn(9, 4), torch.randint(9, (20,))
    targets[3] = IGNORED
    nll = softcap_token_nll(hidden, weight, targets, chunk_tokens=6)
    assert nll[3] == 0
    torch.testing.assert_close(nll.sum(), softcap_cross_entropy(hidden, weight, targets))


def test_gradients_pass_into_the_model_where_only_one_side_wants_them() -> None:
    hidden, weight = torch.randn(6, 4, requires_grad=True), torch.randn(9, 4)
    softcap_cross_entropy(hidden, weight, torch.arange(6)).backward()
    assert hidden.grad is not None and hidden.grad.any()


@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_pass_gradcheck_in_float64(weighted: bool) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 4, IGNORED, 2, 1, IGNORED, 3])
    weights = torch.randn(7, dtype=torch.float64) if weighted else None
    assert torch.autograd.gradcheck(
        lambda h, w: softcap_cross_entropy(h, w, targets, weights, softcap=2.0, chunk_tokens=3), (hidden, weight)
    )


def test_logits_far_beyond_the_cap_stay_finite() -> None:
    hidden, weight = (1e4 * torch.randn(6, 4)).requires_grad_(), torch.randn(9, 4)
    loss = softcap_cross_entropy(hidden, weight, torch.arange(6), softcap=60.0)
    loss.backward()
    assert loss.isfinite() and hidden.grad is not None and hidden.grad.isfinite().all()


def test_bfloat16_weight_gradients_add_up_in_float32() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(512, 8).bfloat16()
    targets = torch.randint(9, (512,))
    weight = torch.randn(9, 8, requires_grad=True)
    softcap_cross_entropy(hidden, weight, targets, chunk_tokens=8).backward()
    exact = weight.detach().bfloat16().float().requires_grad_()
    plain_loss(hidden.float(), exact, targets, None).backward()
    assert weight.grad is not None and exact.grad is not None and weight.grad.dtype == torch.float32
    # 64 chunks, each rounded to 8 bits; a sum kept in bfloat16 would be off by whole percents
    assert (weight.grad - exact.grad).abs().max() < 0.01 * exact.grad.abs().max()


@pytest.mark.parametrize("num_tokens", [1, 63, 4096, 4097, 65_000, 65_536])
@pytest.mark.parametrize("vocab_size", [300, 8192, 50_304])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_chunks_are_even_and_respect_their_limit(num_tokens: int, vocab_size: int, device: str) -> None:
    chunk = plan_chunk_tokens(num_tokens, vocab_size, torch.device(device))
    assert chunk <= max(256, (1 << (22 if device == "cpu" else 27)) // vocab_size)
    num_chunks = -(-num_tokens // chunk)
    assert num_chunks == 1 or chunk % 128 == 0
    assert num_chunks * chunk - num_tokens < 128 * num_chunks  # what the last one is padded with
    if num_tokens == 65_536:
        assert num_chunks * chunk == num_tokens


@pytest.mark.parametrize("num_tokens", [600, 1024, 1500])
def test_all_chunks_have_one_shape_so_that_they_compile_once(monkeypatch: pytest.MonkeyPatch, num_tokens: int) -> None:
    monkeypatch.setattr("nanochat.model.loss.MIN_CHUNK_TOKENS", 300)
    monkeypatch.setattr("nanochat.model.loss.CPU_CHUNK_LOGITS", 1)
    torch.manual_seed(0)
    hidden, weight = torch.randn(num_tokens, 16), torch.randn(33, 16)
    targets = torch.randint(33, (num_tokens,))
    ours = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    theirs = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    shapes = []

    def watch(*arguments):
        shapes.append(arguments[0].shape)
        return compute_chunk_loss(*arguments)

    loss, expected = softcap_cross_entropy(*ours, targets, chunk_loss=watch), plain_loss(*theirs, targets, None)
    assert len(shapes) > 1 and len(set(shapes)) == 1 and shapes[0][0] % 128 == 0
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    loss.backward()
    expected.backward()
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our.grad, their.grad, rtol=1e-4, atol=1e-5)
