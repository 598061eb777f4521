import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.config.device_batch import DEVICE_BYTES, lower_rows
from nanochat.config.load import load_settings
from nanochat.config.memory import MARGIN, MemoryEstimate, estimate_memory, list_rows
from nanochat.config.plan import plan_base, plan_finetune, plan_rl
from nanochat.errors import UsageError
from nanochat.model.config import GPTConfig

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
def test_finetuning_sees_every_row_of_its_epochs_however_many_a_device_takes(rows: int, epochs: float) -> None:
    overrides = ("mid.num_steps=none", f"mid.epochs={epochs}", "batch.total_tokens=16384")
    plans = [plan_finetune(wish(*overrides, f"batch.device_batch_size={n}"), "mid", 2, rows) for n in (1, 16, 32)]
    assert [plan.num_microbatches for plan in plans] == [32, 2, 1]
    assert len({plan.num_steps for plan in plans}) == 1
    asked = epochs * rows / (1 - wish().mid.replay)  # rows of replayed text come on top
    assert plans[0].num_steps * 64 >= asked - 1e-6 > (plans[0].num_steps - 1) * 64 - 1e-6


def test_the_steps_that_are_asked_for_need_no_conversations() -> None:
    sketch = plan_finetune(wish(), "sft", 1, None)
    assert sketch.num_steps == wish().sft.num_steps and sketch.hours is not None
    assert plan_finetune(wish("sft.num_steps=none"), "sft", 1, None).num_steps is None
    whole = plan_finetune(wish(), "sft", 1, 12 * wish().batch.device_batch_size)
    assert dataclasses.asdict(whole) == dataclasses.asdict(sketch) | {"num_batches_per_epoch": 12}


def test_a_stage_may_have_steps_of_its_own_size() -> None:
    plan = plan_finetune(wish("sft.total_tokens=8192"), "sft", 1, None)
    assert (plan.total_batch_tokens, plan.num_microbatches) == (8192, 2)


def test_the_tokenizer_that_was_trained_decides_the_vocabulary() -> None:
    plan = plan_base(wish(), vocab_size=1000)
    assert (plan.vocab_size, plan.num_embedding_params) == (1000, 1024 * 256)


@pytest.mark.parametrize("n_kv_head", [2, 1])
def test_memory_of_activations_is_what_autograd_keeps(monkeypatch: pytest.MonkeyPatch, n_kv_head: int) -> None:
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

    config = GPTConfig(3, 256, 2, n_kv_head, 64, 512)
    measured = measure(config, 8) - measure(config, 4)
    estimated = estimate_memory(config, 8).activations - estimate_memory(config, 4).activations
    assert measured == pytest.approx(estimated, rel=0.03)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_memory_that_stays_is_what_trainer_and_optimizer_hold(world_size: int) -> None:
    torch = pytest.importorskip("torch")
    from nanochat.model.gpt import GPT
    from nanochat.model.optim import build_optimizer

    config = GPTConfig(2, 64, 2, 2, 16, 300)
    model = GPT(config)
    model.init_weights(0)
    optimizer = build_optimizer(model, 0.02, 0.2, 0.004)
    ids = torch.zeros(1, 16, dtype=torch.int64)
    model.loss(ids, ids).backward()
    optimizer.step()
    estimate = estimate_memory(config, 1, world_size, element_bytes=4)
    assert estimate.weights == sum(parameter.nbytes for parameter in model.parameters())
    assert estimate.gradients == sum(parameter.grad.nbytes for parameter in model.parameters())  # type: ignore
    whole = sum(value.nbytes for name, value in optimizer.named_state().items() if not name.endswith(".step"))
    assert whole // world_size <= estimate.optimizer <= whole
    assert world_size > 1 or estimate.optimizer == whole
    assert estimate.total == sum(dataclasses.asdict(estimate).values())


def test_a_loss_chunk_is_planned_as_large_as_it_is() -> None:
    loss = pytest.importorskip("nanochat.model.loss")
    from nanochat.config import memory
    from nanochat.model import attention

    assert memory.CHUNK_LOGITS == {"cpu": loss.CPU_CHUNK_LOGITS, "cuda": loss.CHUNK_LOGITS}
    assert memory.CPU_SCORES_CONTEXT == attention.CPU_BLOCKS_CONTEXT
    assert memory.CPU_BLOCK_TOKENS == attention.CPU_BLOCK_TOKENS


def test_rows_are_listed_once_each_and_divide_the_step() -> None:
    assert list_rows(524_288, 2_048, 1) == [1, 2, 4, 8, 16, 32, 64, 128, 256]
    assert list_rows(12 * 64 * 2, 64, 2) == [1, 2, 3, 4, 6, 12]
    assert list_rows(1000, 64, 1) == []


@pytest.mark.parametrize(("preset", "gpus", "rows"), [("d20", 8, 32), ("d26", 8, 16), ("d32", 8, 8)])
def test_auto_plans_what_the_presets_of_80_gb_say(preset: str, gpus: int, rows: int) -> None:
    plan = plan_base(wish("batch.device_batch_size=auto", preset=preset), gpus)
    assert plan.device_batch_size == rows == wish(preset=preset).batch.device_batch_size
    assert plan.memory_bytes == plan.memory.total <= (1 - MARGIN) * DEVICE_BYTES
    assert isinstance(plan.memory, MemoryEstimate)
    assert plan.num_microbatches * rows * plan.context * gpus == plan.total_batch_tokens


def test_a_plan_counts_the_memory_of_the_device_that_is_named() -> None:
    """On a CPU the libraries share it; float32 has no copies in another type. Any other name counts as a GPU."""
    for device, of_process in (("auto", False), ("cuda", False), ("cpu", True)):
        settings = wish(f"runtime.device={device}", "rl.task=arithmetic", preset="demo")
        plans = (plan_base(settings), plan_finetune(settings, "sft", 1, None), plan_rl(settings, 1, None))
        assert all((plan.memory.process > 0) == of_process for plan in plans), device
    single, half = (plan_base(wish(f"runtime.dtype={name}", preset="demo")) for name in ("float32", "bfloat16"))
    assert single.memory.activations == 2 * half.memory.activations and single.memory.weights < half.memory.weights


def test_auto_leaves_the_step_of_every_stage_as_it_is() -> None:
    fixed, auto = (
        plan_finetune(wish("sft.total_tokens=6144", f"batch.device_batch_size={n}"), "sft", 1, None)
        for n in (8, "auto")
    )
    assert auto.device_batch_size == 24 and auto.num_microbatches == 1
    assert auto.total_batch_tokens == fixed.total_batch_tokens
    with pytest.raises(UsageError, match=r"sft.total_tokens = 5000 is not a multiple of 1 x 256 x 1"):
        plan_finetune(wish("sft.total_tokens=5000", "batch.device_batch_size=auto"), "sft", 1, None)


@pytest.mark.parametrize(
    "rows, total, gpus, lower",
    [
        (16, 4096, 1, 16),
        (16, 4096, 2, 8),
        (16, 4096, 16, 1),
        (16, 256 * 30, 2, 15),
        (16, 256 * 34, 1, 2),
        (4, 4096, 2, 4),
    ],
)
def test_a_device_batch_that_nobody_chose_is_an_upper_limit(rows: int, total: int, gpus: int, lower: int) -> None:
    settings = wish(f"batch.device_batch_size={rows}", f"batch.total_tokens={total}", "sft.total_tokens=none")
    for stage in ("base", "mid", "sft"):
        lowered, said = lower_rows(settings, stage, gpus, is_chosen=False)
        assert lowered.batch.device_batch_size == lower and bool(said) == (lower != rows)
        assert said == "" or said.startswith(f"{stage}: device_batch_size = {lower} instead of {rows}")
        plan = plan_base(lowered, gpus) if stage == "base" else plan_finetune(lowered, stage, gpus, None)
        assert plan.num_microbatches * lower * 256 * gpus == total
        assert lower_rows(settings, stage, gpus, is_chosen=True) == (settings, "")
    assert lower_rows(settings, "rl", gpus, is_chosen=False) == (settings, "")


def test_a_step_that_no_number_of_rows_divides_is_left_to_the_plan_to_refuse() -> None:
    settings = wish("batch.total_tokens=5000")
    assert lower_rows(settings, "base", 1, is_chosen=False) == (settings, "")
