"""The chunked loss is the plain one, with the same gradients."""

import pytest
import torch
import torch.nn.functional as F

from nanochat.model.loss import IGNORED, softcap_cross_entropy, softcap_token_nll


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
