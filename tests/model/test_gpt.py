"""The model computes what transformers' NanoChatForCausalLM computes, and its sizes are what the plan says."""

import math
import subprocess
import sys

import pytest
import torch
from transformers import NanoChatConfig, NanoChatForCausalLM

from nanochat.model.accounting import count_params, flops_per_token
from nanochat.model.config import GPTConfig
from nanochat.model.gpt import GPT
from nanochat.model.hf import build_hf_config, to_hf_state
from nanochat.model.loss import IGNORED
from nanochat.runtime import can_compile


def build_random_gpt(config: GPTConfig, seed: int = 0) -> GPT:
    """A model in which no weight is zero, so that every path shows in the logits."""
    model = GPT(config)
    model.init_weights(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("n_kv_head", [1, None])
def test_logits_equal_those_of_transformers(depth: int, n_kv_head: int | None) -> None:
    config = GPTConfig.from_depth(depth, vocab_size=300, context=64, n_kv_head=n_kv_head)
    model = build_random_gpt(config)
    reference = NanoChatForCausalLM(NanoChatConfig(**build_hf_config(config, 291, 295))).eval()
    reference.load_state_dict(to_hf_state(model.state_dict(), config))
    ids = torch.randint(300, (2, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(ids), reference(ids).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("config", [GPTConfig.from_depth(3, 1000), GPTConfig(2, 64, 4, 2, 32, 77)])
def test_counted_parameters_are_the_built_ones(config: GPTConfig) -> None:
    assert count_params(config)["total"] == sum(parameter.numel() for parameter in GPT(config).parameters())


@pytest.mark.parametrize(("depth", "millions"), [(12, 162.2), (20, 522.0), (26, 1031), (32, 1817)])
def test_the_presets_have_the_published_sizes(depth: int, millions: float) -> None:
    config = GPTConfig.from_depth(depth, 50304)
    total = count_params(config)["total"]
    assert total == 12 * depth * config.n_embd**2 + 2 * 50304 * config.n_embd
    assert total / 1e6 == pytest.approx(millions, rel=1e-3)
    assert flops_per_token(config) == 6 * (total - 50304 * config.n_embd) + 12 * depth * config.n_embd * 2048


def test_a_new_model_is_uniform_over_the_vocabulary() -> None:
    model = GPT(GPTConfig.from_depth(2, vocab_size=300, context=16))
    model.init_weights(0)
    ids = torch.randint(300, (2, 16))
    assert model.loss(ids, ids).item() / ids.numel() == pytest.approx(math.log(300), rel=1e-6)


def test_initial_weights_follow_the_seed_alone() -> None:
    first, second, other = (GPT(GPTConfig.from_depth(1, 300)) for _ in range(3))
    for model, seed in ((first, 7), (second, 7), (other, 8)):
        model.init_weights(seed)
    assert torch.equal(first.embedding.weight, second.embedding.weight)
    assert not torch.equal(first.embedding.weight, other.embedding.weight)
    assert first.blocks[0].mlp.up.weight.std().item() == pytest.approx(1 / 8, rel=0.05)


def test_bfloat16_activations_stay_close_to_float32() -> None:
    model = build_random_gpt(GPTConfig.from_depth(2, vocab_size=300, context=16))
    ids = torch.randint(300, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact = model(ids)
        model.compute_dtype = torch.bfloat16
        assert model(ids).dtype == torch.float32
        assert (model(ids) - exact).abs().mean() < 0.05 * exact.abs().mean()


@pytest.mark.parametrize(
    ("sizes", "fragment"),
    [
        ((2, 64, 3, 1, 8, 99), "not a multiple of n_head = 3"),
        ((2, 64, 4, 3, 8, 99), "not a multiple of n_kv_head"),
        ((2, 12, 4, 4, 8, 99), "odd"),
        ((0, 64, 4, 4, 8, 99), "n_layer = 0"),
    ],
)
def test_sizes_that_do_not_fit_are_named(sizes: tuple[int, ...], fragment: str) -> None:
    with pytest.raises(ValueError, match=fragment):
        GPTConfig(*sizes)


@pytest.mark.parametrize("depth", range(1, 40))
def test_every_depth_gives_a_shape_that_fits(depth: int) -> None:
    assert GPTConfig.from_depth(depth, 1000).head_dim <= 128


class GrowingCache:
    """Every key and value in one growing tensor a layer: the protocol at its simplest, for rows of equal length."""

    def __init__(self) -> None:
        self.layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.positions = torch.empty(0, 0, dtype=torch.int64)

    def expect(self, num_rows: int, start: int, stop: int) -> "GrowingCache":
        self.positions = torch.arange(start, stop).expand(num_rows, -1)
        return self

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if layer in self.layers:
            k, v = torch.cat((self.layers[layer][0], k), dim=1), torch.cat((self.layers[layer][1], v), dim=1)
        self.layers[layer] = (k, v)
        heads = q.size(2) // k.size(2)
        k, v = k.repeat_interleave(heads, dim=2), v.repeat_interleave(heads, dim=2)
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / q.size(-1) ** 0.5
        seen = torch.arange(k.size(1)) <= self.positions[:, None, :, None]  # (B, 1, new, all)
        return torch.einsum("bhqk,bkhd->bqhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v)


@pytest.mark.parametrize("n_kv_head", [1, 2])
@pytest.mark.parametrize("cuts", [(0, 20), (0, 7, 8, 9, 20), tuple(range(21))])
@torch.no_grad()
def test_a_cache_gives_the_logits_of_the_plain_forward(n_kv_head: int, cuts: tuple[int, ...]) -> None:
    model = build_random_gpt(GPTConfig(2, 32, 2, n_kv_head, context=16, vocab_size=70))  # 20 tokens: beyond the context
    ids = torch.randint(70, (3, 20), generator=torch.Generator().manual_seed(0))
    cache = GrowingCache()
    pieces = [
        model(ids[:, start:stop], cache.expect(3, start, stop)) for start, stop in zip(cuts, cuts[1:], strict=False)
    ]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(ids), atol=1e-4, rtol=0)


def test_later_tokens_do_not_change_earlier_logits() -> None:
    model = build_random_gpt(GPTConfig.from_depth(2, vocab_size=70, context=16))
    ids = torch.randint(70, (1, 16), generator=torch.Generator().manual_seed(0))
    changed = ids.clone()
    changed[0, 10:] = (changed[0, 10:] + 1) % 70
    with torch.no_grad():
        torch.testing.assert_close(model(ids)[:, :10], model(changed)[:, :10])
        assert not torch.allclose(model(ids)[:, 10:], model(changed)[:, 10:])


def test_padding_rows_of_the_tables_get_no_gradient() -> None:
    model = build_random_gpt(GPTConfig.from_depth(1, vocab_size=70, context=16))
    ids = torch.randint(70, (2, 16), generator=torch.Generator().manual_seed(0))
    assert model(ids).shape == (2, 16, 70)
    model.loss(ids, ids).backward()
    for table in (model.embedding.weight, model.head.weight):
        assert table.shape[0] == 128 and table.grad is not None and table.grad[:70].any()
        assert not table.grad[70:].any()


def test_token_losses_sum_to_the_loss_and_skip_what_is_ignored() -> None:
    model = build_random_gpt(GPTConfig.from_depth(1, vocab_size=70, context=16))
    ids = torch.randint(70, (2, 16), generator=torch.Generator().manual_seed(0))
    targets = ids.roll(-1, 1)
    targets[:, -1] = IGNORED
    nll = model.token_nll(ids, targets)
    assert nll.dtype == torch.float32 and not nll[:, -1].any()
    logits = model(ids).detach()
    plain = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="sum")
    torch.testing.assert_close(nll.sum(), plain, rtol=1e-5, atol=0)
    torch.testing.assert_close(model.loss(ids, targets).detach(), plain, rtol=1e-5, atol=0)
    weights = torch.rand(2, 16)
    torch.testing.assert_close(model.loss(ids, targets, weights).detach(), (nll * weights).sum(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("n_kv_head", [1, 2])
def test_the_model_traces_into_one_graph(n_kv_head: int) -> None:
    model = build_random_gpt(GPTConfig(2, 32, 2, n_kv_head, context=16, vocab_size=70))
    ids = torch.randint(70, (2, 16), generator=torch.Generator().manual_seed(0))
    traced = torch.compile(model.hidden, fullgraph=True, backend="aot_eager", dynamic=False)
    torch.testing.assert_close(traced(ids), model.hidden(ids))


@pytest.mark.skipif(not can_compile()[0], reason="no C++ compiler here")
def test_the_compiled_loss_has_the_same_gradients() -> None:
    model = build_random_gpt(GPTConfig.from_depth(1, vocab_size=70, context=16))
    ids = torch.randint(70, (2, 16), generator=torch.Generator().manual_seed(0))
    targets, weights = ids.roll(-1, 1), torch.rand(2, 16)
    targets[0, :5] = IGNORED
    results = []
    for loss in (model.loss, model.compile_loss()):
        model.zero_grad()
        value = loss(ids, targets, weights)
        value.backward()
        results.append([value.detach(), *(parameter.grad for parameter in model.parameters())])
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)


def test_a_model_that_only_answers_does_not_load_the_compiler() -> None:
    """It takes more than a second of every `chat`."""
    code = """if True:
        import sys, torch
        before = "torch._dynamo" in sys.modules
        from nanochat.model.config import GPTConfig
        from nanochat.stages.assemble import build_model
        model = build_model(GPTConfig.from_depth(1, 300, 16), torch.device("cpu"), torch.float32)
        model.init_weights(0)
        model(torch.zeros(1, 4, dtype=torch.int64))
        print(before or "torch._dynamo" not in sys.modules)
    """
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "True\n"
