from collections.abc import Iterator

import pytest
import torch
from torch.overrides import TorchFunctionMode

from nanochat.engine.engine import Engine, Request, generate
from nanochat.engine.kv_cache import KVCache, cache_bytes
from nanochat.engine.sampling import SamplingParams
from nanochat.model.config import GPTConfig
from nanochat.model.gpt import GPT


def random_gpt(n_kv_head: int, dtype: torch.dtype = torch.float32) -> GPT:
    """A GPT whose output projections are not the zeros that training starts from."""
    model = GPT(GPTConfig(n_layer=3, n_embd=32, n_head=4, n_kv_head=n_kv_head, context=48, vocab_size=97))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[1] ** 0.5)
    model.compute_dtype = dtype
    return model


@pytest.mark.parametrize("n_kv_head", [1, 2, 4])
@torch.no_grad()
def test_every_cached_logit_equals_the_naive_forward(n_kv_head: int) -> None:
    model = random_gpt(n_kv_head)
    ids = torch.randint(97, (3, 40), generator=torch.Generator().manual_seed(2))
    expected = model(ids)  # (3, 40, V)
    cache = KVCache(3, n_kv_head, 8, num_rows=4, max_context=48, dtype=torch.float32, device=torch.device("cpu"))
    lengths = [5, 17, 1]
    for row, length in enumerate(lengths):
        first = length // 2  # in two parts, the second after what the first left
        if first:
            model.hidden(ids[row : row + 1, :first], cache.prefill(row, 0, first))
        logits = model(ids[row : row + 1, first:length], cache.prefill(row, first, length - first))
        torch.testing.assert_close(logits[0], expected[row, first:length], atol=1e-4, rtol=1e-4)
    for _ in range(20):
        last = torch.stack([ids[row, length] for row, length in enumerate(lengths)])[:, None]
        logits = model(last, cache.decode(lengths))[:, 0]
        wanted = torch.stack([expected[row, length] for row, length in enumerate(lengths)])
        torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=1e-4)
        lengths = [length + 1 for length in lengths]


@torch.no_grad()
def test_greedy_answers_equal_the_naive_loop() -> None:
    model = random_gpt(2)
    prompts = [[1], [5, 6, 7], list(range(30))]
    expected = []
    for prompt in prompts:
        ids = list(prompt)
        for _ in range(10):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
        expected.append(ids[len(prompt) :])
    assert generate(Engine(model, 2), prompts, SamplingParams(temperature=0, max_new_tokens=10)) == expected


def test_the_cache_has_the_type_that_the_model_computes_in() -> None:
    model = random_gpt(4, torch.bfloat16)
    engine = Engine(model, 2)
    assert engine.cache.keys.dtype == torch.bfloat16
    own = (engine.cache.keys, engine.cache.values)
    sizes = (model.config.n_layer, model.config.n_kv_head, model.config.head_dim, 2, engine.max_context)
    assert cache_bytes(*sizes, torch.bfloat16) == sum(part.numel() * part.element_size() for part in own)
    assert [len(a) for a in generate(engine, [[1], [2, 3]], SamplingParams(max_new_tokens=5))] == [5, 5]


class CountedCasts(TorchFunctionMode):
    """Counts the matrices that `.to` turns into another type."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is torch.Tensor.to and isinstance(args[0], torch.nn.Parameter):
            self.count += result.dtype != args[0].dtype
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_weights_cast_once_give_the_same_bits_without_a_cast_for_every_token(dtype: torch.dtype) -> None:
    trained = random_gpt(2, dtype)
    cast = trained.cast_weights()
    assert {weight.dtype for weight in cast.parameters()} == {dtype}
    assert {weight.dtype for weight in trained.parameters()} == {torch.float32}  # they go on being trained
    ids = torch.randint(97, (3, 40), generator=torch.Generator().manual_seed(2))
    assert torch.equal(trained(ids), cast(ids)) and cast(ids).dtype == torch.float32
    assert torch.equal(trained.token_nll(ids, ids), cast.token_nll(ids, ids))
    caches = [KVCache(3, 2, 8, 3, 48, dtype, torch.device("cpu")) for _ in range(2)]
    for length in range(40):
        with CountedCasts() as casts:
            cached = cast(ids[:, length : length + 1], caches[1].decode([length] * 3))
        assert casts.count == 0
        assert torch.equal(trained(ids[:, length : length + 1], caches[0].decode([length] * 3)), cached)


def test_a_cast_of_the_weights_is_what_they_are_now() -> None:
    trained = random_gpt(2, torch.bfloat16)
    before = trained.cast_weights()
    with torch.no_grad():
        trained.head.weight.mul_(2)
    assert torch.equal(trained.cast_weights().head.weight, 2 * before.head.weight)
    assert random_gpt(2).cast_weights().head.weight.requires_grad  # float32 already: the model itself, still trained


@pytest.fixture
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("four_threads")
def test_a_step_takes_no_more_threads_than_its_size_keeps_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_gpt(4)
    weights = sum(weight.numel() for weight in model.parameters()) - model.embedding.weight.numel()
    monkeypatch.setattr("nanochat.runtime.PRODUCTS_PER_THREAD", 2 * weights)
    used = []
    model.blocks[0].register_forward_hook(
        lambda block, arguments, output: used.append((output.size(0) * output.size(1), torch.get_num_threads()))
    )
    prompts = [[1] * 9, [2], [3], [4]]
    generate(Engine(model, 4, prefill_tokens=8), prompts, SamplingParams(temperature=0, max_new_tokens=2))
    assert {count: threads for count, threads in used} == {8: 4, 4: 3, 3: 2, 1: 1}
    used.clear()
    generate(Engine(model, 1), [[1]], SamplingParams(temperature=0, max_new_tokens=3))
    assert set(used) == {(1, 1)}
    assert torch.get_num_threads() == 4  # as training has it


@pytest.mark.usefixtures("four_threads")
def test_the_threads_are_as_before_when_a_step_fails() -> None:
    model = random_gpt(4)
    model.blocks[0].register_forward_hook(lambda *arguments: 1 / 0)
    engine = Engine(model, 1)
    engine.add(Request(0, [1], SamplingParams()))
    with pytest.raises(ZeroDivisionError):
        engine.step()
    assert torch.get_num_threads() == 4
