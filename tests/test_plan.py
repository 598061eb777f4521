import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.errors import UsageError
from nanochat.layers import load_settings
from nanochat.model.config import GPTConfig
from nanochat.plan import estimate_memory_bytes, plan_base, plan_finetune, sketch_finetune

GOLDEN = [  # preset, devices, parameters, micro-batches, steps, tokens
    ("demo", 1, 3_670_016, 1, 300, 1_228_800),
    ("d12", 1, 162_201_600, 8, 6_188, 3_244_294_144),
    ("d20", 8, 521_994_240, 1, 19_912, 10_439_622_656),
    ("d26", 8, 1_031_307_264, 2, 39_341, 20_626_014_208),
    ("d32", 8, 1_816_657_920, 4, 69_300, 36_333_158_400),
]


def wish(*overrides: str, preset: str = "demo"):
    return load_settings(preset, None, overrides, {})[0]


@pytest.mark.parametrize("preset, gpus, params, microbatches, steps, tokens", GOLDEN)
def test_presets_mean_these_numbers(preset, gpus, params, microbatches, steps, tokens) -> None:
    plan = plan_base(wish(preset=preset), gpus)
    assert (plan.num_params, plan.num_microbatches, plan.num_steps, plan.num_tokens) == (
        params,
        microbatches,
        steps,
        tokens,
    )


@pytest.mark.parametrize(
    "preset, hours, dollars",
    [("d20", (2.5, 4), (60, 100)), ("d26", (11, 13), (265, 310)), ("d32", (35, 42), (850, 1000))],
)
def test_hours_and_cost_agree_with_the_published_ones(preset, hours, dollars) -> None:
    plan = plan_base(wish(preset=preset), 8)
    assert hours[0] <= plan.hours <= hours[1] and dollars[0] <= plan.dollars <= dollars[1]
    assert plan.dollars == pytest.approx(24 * plan.hours)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 64), st.integers(8, 512), st.integers(1, 16), st.integers(1, 1 << 20))
def test_a_plan_divides_exactly_or_names_a_step_that_does(rows: int, context: int, gpus: int, total: int) -> None:
    overrides = [f"batch.device_batch_size={rows}", f"model.context={context}"]
    try:
        plan = plan_base(wish(*overrides, f"batch.total_tokens={total}"), gpus)
    except UsageError as error:
        assert total % (rows * context * gpus)
        fixed = error.hint.removeprefix("--set ")
        plan = plan_base(wish(*overrides, f"batch.total_tokens={total}", fixed), gpus)
    assert plan.num_microbatches * plan.device_batch_size * context * gpus == plan.total_batch_tokens


def test_the_three_horizons() -> None:
    by_params = plan_base(wish("base.num_steps=none", "base.tokens_per_param=2"))
    assert by_params.horizon == "tokens_per_param"
    assert by_params.tokens_per_param == pytest.approx(2, abs=4096 / by_params.num_params)
    by_flops = plan_base(wish("base.num_steps=none", f"base.flops={by_params.total_flops}"))
    assert (by_flops.horizon, by_flops.num_steps) == ("flops", by_params.num_steps)
    assert plan_base(wish()).horizon == "num_steps"


@given(st.integers(1, 5000), st.floats(0.1, 5))
@settings(deadline=None)
def test_finetuning_sees_every_batch_of_its_epochs(batches: int, epochs: float) -> None:
    plan = plan_finetune(
        wish("mid.num_steps=none", f"mid.epochs={epochs}", "batch.total_tokens=16384"), "mid", 2, batches
    )
    assert plan.num_microbatches == 2
    assert plan.num_steps * 2 >= epochs * batches - 1e-6 > (plan.num_steps - 1) * 2 - 1e-6


def test_the_steps_that_are_asked_for_need_no_conversations() -> None:
    sketch = sketch_finetune(wish(), "sft")
    assert sketch.num_steps == wish().sft.num_steps and sketch.hours is not None
    assert sketch_finetune(wish("sft.num_steps=none"), "sft").num_steps is None
    whole = plan_finetune(wish(), "sft", 1, 12)
    assert dataclasses.asdict(whole) == dataclasses.asdict(sketch) | {"num_batches_per_epoch": 12}


def test_a_stage_may_have_steps_of_its_own_size() -> None:
    plan = sketch_finetune(wish("sft.total_tokens=8192"), "sft")
    assert (plan.total_batch_tokens, plan.num_microbatches) == (8192, 2)


def test_the_tokenizer_that_was_trained_decides_the_vocabulary() -> None:
    plan = plan_base(wish(), vocab_size=1000)
    assert (plan.vocab_size, plan.num_embedding_params) == (1000, 1024 * 256)


def test_memory_of_activations_is_what_autograd_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from nanochat.model import attention
    from nanochat.model.gpt import GPT

    monkeypatch.setattr(attention, "CPU_BLOCKS_CONTEXT", 0)  # the fused kernel: what a GPU keeps is what is planned

    def measure(config: GPTConfig, rows: int) -> int:
        model = GPT(config)
        model.init_weights(0)
        model.compute_dtype = torch.bfloat16
        weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        kept: dict[int, torch.Tensor] = {}

        def pack(tensor):
            if tensor.untyped_storage().data_ptr() not in weights:
                kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        ids = torch.zeros(rows, config.context, dtype=torch.int64)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model.loss(ids, ids)
        return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())

    config = GPTConfig(3, 256, 2, 2, 64, 512)
    measured = measure(config, 8) - measure(config, 4)
    estimated = estimate_memory_bytes(config, 8) - estimate_memory_bytes(config, 4)
    assert measured == pytest.approx(estimated, rel=0.1)
