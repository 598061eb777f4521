"""Our optimizer equals torch's where they define the same thing, and its state survives a save."""

import pytest
import torch
from torch import nn

from nanochat.model.config import GPTConfig
from nanochat.model.gpt import GPT
from nanochat.model.optim import MuonAdamW, build_optimizer
from nanochat.model.updates import orthogonalize


def make_parameters(*shapes: tuple[int, int]) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def run_steps(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], steps: int = 5) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw_equals_torch_adamw(weight_decay: float) -> None:
    ours, theirs = make_parameters((10, 6), (4, 3)), make_parameters((10, 6), (4, 3))
    group = {"kind": "adamw", "names": ["a", "b"], "params": ours, "lr": 0.01, "weight_decay": weight_decay}
    run_steps(MuonAdamW([group]), ours)
    run_steps(torch.optim.AdamW(theirs, lr=0.01, betas=(0.8, 0.95), eps=1e-10, weight_decay=weight_decay), theirs)
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_muon_equals_torch_muon(weight_decay: float) -> None:
    shapes = ((16, 8), (8, 16), (8, 8), (16, 8))
    ours, theirs = make_parameters(*shapes), make_parameters(*shapes)
    group = {"kind": "muon", "names": list("abcd"), "params": ours, "lr": 0.02, "weight_decay": weight_decay}
    run_steps(MuonAdamW([group | {"dtype": torch.bfloat16}]), ours)
    run_steps(torch.optim.Muon(theirs, lr=0.02, momentum=0.95, weight_decay=weight_decay), theirs)
    for our, their in zip(ours, theirs, strict=True):
        assert (our - their).abs().max() < 6e-3  # bf16 products in another order; the updates sum to about 0.1
        assert (our - their).abs().mean() < 1e-3


def test_orthogonalized_matrices_have_singular_values_near_one() -> None:
    for shape in ((3, 32, 8), (2, 8, 32)):
        values = torch.linalg.svdvals(orthogonalize(torch.randn(shape), torch.float32))
        assert values.min() > 0.5 and values.max() < 1.3


def test_saved_state_continues_bit_for_bit() -> None:
    def build() -> tuple[GPT, MuonAdamW]:
        model = GPT(GPTConfig.from_depth(1, 70, context=8))
        model.init_weights(0)
        return model, build_optimizer(model, 0.02, 0.2, 0.004)

    def train(model: GPT, optimizer: MuonAdamW, seeds: range) -> None:
        for seed in seeds:
            ids = torch.randint(70, (2, 8), generator=torch.Generator().manual_seed(seed))
            optimizer.zero_grad()
            model.loss(ids, ids).backward()
            optimizer.step()

    whole, whole_optimizer = build()
    train(whole, whole_optimizer, range(6))
    half, half_optimizer = build()
    train(half, half_optimizer, range(3))
    resumed, resumed_optimizer = build()
    resumed.load_state_dict(half.state_dict())
    resumed_optimizer.load_named_state([{name: value.clone() for name, value in half_optimizer.named_state().items()}])
    train(resumed, resumed_optimizer, range(3, 6))
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_rates_of_the_tables_follow_the_width() -> None:
    optimizer = build_optimizer(GPT(GPTConfig.from_depth(3, 70)), 0.02, 0.2, 0.004)
    rates = {name: group["base_lr"] for group in optimizer.param_groups for name in group["names"]}
    assert rates["embedding.weight"] == pytest.approx(0.2 * 2)  # (192 / 768)^-0.5 = 2
    assert rates["head.weight"] == pytest.approx(0.004 * 2)
    assert rates["blocks.2.mlp.down.weight"] == 0.02


def test_state_of_another_model_is_refused() -> None:
    optimizer = build_optimizer(GPT(GPTConfig.from_depth(1, 70)), 0.02, 0.2, 0.004)
    with pytest.raises(ValueError, match="belongs to no parameter"):
        optimizer.load_named_state([{"blocks.9.mlp.up.weight.momentum": torch.zeros(1)}])


def test_clipping_equals_torchs_and_returns_the_norm_before() -> None:
    ours, theirs = make_parameters((10, 6), (4, 3)), make_parameters((10, 6), (4, 3))
    for our, their in zip(ours, theirs, strict=True):
        our.grad, their.grad = our.detach() * 3, their.detach() * 3
    optimizer = MuonAdamW([{"kind": "adamw", "names": ["a", "b"], "params": ours, "lr": 0.01, "weight_decay": 0.0}])
    optimizer.reduce_gradients()
    torch.testing.assert_close(optimizer.clip_grad_norm(1.0), nn.utils.clip_grad_norm_(theirs, 1.0))
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our.grad, their.grad)
    assert optimizer.grad_norm().item() == pytest.approx(1.0, rel=1e-5)
    before = [our.grad.clone() for our in ours if our.grad is not None]
    optimizer.clip_grad_norm(2.0)  # below the limit nothing changes
    assert all(our.grad is not None and torch.equal(our.grad, grad) for our, grad in zip(ours, before, strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_shows_in_the_norm_before_anything_changes(bad: float) -> None:
    model = GPT(GPTConfig.from_depth(1, 70, context=8))
    model.init_weights(0)
    optimizer = build_optimizer(model, 0.02, 0.2, 0.004)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    model.head.weight.grad[3, 1] = bad
    optimizer.reduce_gradients()
    assert not optimizer.grad_norm().isfinite()
    assert not optimizer.named_state()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_state_of_another_shape_is_refused() -> None:
    optimizer = build_optimizer(GPT(GPTConfig.from_depth(1, 70)), 0.02, 0.2, 0.004)
    with pytest.raises(ValueError, match=r"head.weight.mean' has the shape \(64, 64\), not \(128, 64\)"):
        optimizer.load_named_state([{"head.weight.mean": torch.zeros(64, 64)}])
