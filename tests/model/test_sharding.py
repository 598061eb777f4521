"""Processes that share an optimizer train like one, each with its part of the state, and talk while they compute."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from nanochat.data.batch import IGNORED, Batch
from nanochat.model import sharding
from nanochat.model.accounting import count_optimizer_values
from nanochat.model.config import GPTConfig
from nanochat.model.gpt import GPT
from nanochat.model.optim import MuonAdamW, build_optimizer
from nanochat.runtime import World
from nanochat.training.loop import TrainState
from tests.training.loops import Event, Recipe
from tests.training.loops import train as run_loop

# Three layers: 6 square matrices, 6 narrow ones and 3 of each MLP shape, so that some blocks of 2 and 4 are not full.
# 65 ids make 128 rows; cut to 127 they are an odd number, so that the last slice of a table is short.
CONFIG = GPTConfig(n_layer=3, n_embd=32, n_head=2, n_kv_head=1, context=16, vocab_size=65)
WORLDS = (2, 3, 4)
NUM_STEPS = 20
NUM_ROWS = 24  # of a step on all ranks: two micro-batches on each rank of any of these worlds
POISONED_STEP = 3


def build(rank: int, world_size: int) -> tuple[GPT, MuonAdamW]:
    model = GPT(CONFIG)
    model.embedding.weight = nn.Parameter(model.embedding.weight[:127].detach().clone())
    model.init_weights(0)
    return model, build_optimizer(model, 0.02, 0.2, 0.004, 0.1, rank, world_size, torch.float32)


def build_batches(step: int, rank: int, world_size: int) -> list[Batch]:
    """Two micro-batches; rank r takes rows r, r + n, ... of the same rows. Some have more targets than others."""
    starts = torch.randint(65, (NUM_ROWS, 1), generator=torch.Generator().manual_seed(step))
    ids = (starts * torch.arange(1, CONFIG.context + 2)) % 65
    targets = ids[:, 1:].clone()
    targets[:4, :9] = IGNORED
    rows = slice(rank, None, world_size)
    parts = zip(ids[rows, :-1].chunk(2), targets[rows].chunk(2), strict=True)
    return [Batch(*part) for part in parts]


def train(rank: int, world_size: int, num_steps: int = NUM_STEPS, poisoned_rank: int = -1) -> dict[str, Any]:
    """The real loop. poisoned_rank: its loss is not a number in POISONED_STEP, with a gradient that is not either."""
    model, optimizer = build(rank, world_size)
    state, records, weights = TrainState(), [], []

    def loss(ids: Tensor, targets: Tensor) -> Tensor:
        poison = math.nan if rank == poisoned_rank and state.step + 1 == POISONED_STEP else 1.0
        return model.loss(ids, targets) * poison

    def look(state: TrainState) -> None:
        weights.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))

    recipe = Recipe(
        name="base",
        model=model,
        optimizer=optimizer,
        microbatches=lambda: build_batches(state.step, rank, world_size),
        loss=loss,
        num_steps=num_steps,
        warmup=0.0,
        warmdown=0.2,
        grad_clip=0.5,
        save=lambda state: None,
        resume_hint="",
        events=(Event("look", 1, look),),
    )
    run_loop(recipe, state, World(rank, rank, world_size), records.append)
    kept = optimizer.named_state()
    resumed = build(rank, world_size)[1]
    resumed.load_named_state([kept])
    same = all(torch.equal(value, resumed.named_state()[name]) for name, value in kept.items())
    return {"model": model.state_dict(), "state": kept, "same": same, "records": records, "weights": weights}


def run_rank(rank: int, folder: str) -> None:
    """One process takes part in every world that has its rank: starting it costs more than what it does."""
    torch.set_num_threads(1)
    for world_size in WORLDS:
        if rank < world_size:
            meeting = f"file://{folder}/meeting{world_size}"
            dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world_size)
            torch.save(train(rank, world_size), f"{folder}/{world_size}_{rank}.pt")
            if world_size == 2:
                torch.save(train(rank, 2, 5, poisoned_rank=1), f"{folder}/poisoned_{rank}.pt")
            dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not dist.is_gloo_available():
        pytest.skip("this torch has no gloo")
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(run_rank, (str(folder),), nprocs=max(WORLDS))  # type: ignore[attr-defined]
    return folder


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as each rank has
    try:
        return train(0, 1)
    finally:
        torch.set_num_threads(before)


def without_counts(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if not name.endswith(".step")}


@pytest.mark.parametrize("world_size", WORLDS)
def test_ranks_train_like_one_process(folder: Path, alone: dict[str, Any], world_size: int) -> None:
    results = [torch.load(folder / f"{world_size}_{rank}.pt") for rank in range(world_size)]
    for result in results:
        for record, expected in zip(result["records"], alone["records"], strict=True):
            assert record["loss"] == pytest.approx(expected["loss"], abs=1e-6)
            assert record["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)
        assert torch.equal(result["weights"][-1], results[0]["weights"][-1])  # bit for bit on all ranks
        torch.testing.assert_close(result["weights"][-1], alone["weights"][-1], rtol=1e-4, atol=3e-5)
    assert alone["records"][-1]["loss"] < alone["records"][0]["loss"] - 0.5  # they learn, so 1e-6 says something


@pytest.mark.parametrize("world_size", WORLDS)
def test_each_rank_keeps_its_part_of_the_state_and_loads_it_again(
    folder: Path, alone: dict[str, Any], world_size: int
) -> None:
    results = [torch.load(folder / f"{world_size}_{rank}.pt") for rank in range(world_size)]
    assert all(result["same"] for result in results)
    parts, whole = [without_counts(result["state"]) for result in results], without_counts(alone["state"])
    for name, value in whole.items():
        pieces = [part[name] for part in parts if name in part]
        assert len(pieces) == (1 if name.endswith("momentum") else world_size)
        torch.testing.assert_close(torch.cat(pieces), value, rtol=1e-3, atol=1e-5)


def test_a_gradient_that_is_not_finite_on_one_rank_makes_all_leave_the_step_out(folder: Path) -> None:
    results = [torch.load(folder / f"poisoned_{rank}.pt") for rank in range(2)]
    for result in results:
        assert [record["step"] for record in result["records"] if not math.isfinite(record["loss"])] == [POISONED_STEP]
        assert result["records"][-1]["skipped"] == 1
        steps = result["weights"]
        same = [torch.equal(before, after) for before, after in zip(steps, steps[1:], strict=False)]
        assert same == [False, True, False, False]  # after steps 2, 3, 4, 5
        assert all(torch.equal(one, other) for one, other in zip(steps, results[0]["weights"], strict=True))
        assert torch.isfinite(steps[-1]).all()


def test_state_moves_to_any_number_of_ranks_and_back(alone: dict[str, Any]) -> None:
    whole = alone["state"]
    parts = [whole]
    for world_size in (2, 4, 3, 6, 8, 1):
        moved = []
        for rank in range(world_size):
            _, mine = build(rank, world_size)
            mine.load_named_state(parts)
            moved.append(mine.named_state())
        numbers = [sum(v.numel() for v in without_counts(part).values()) for part in moved]
        assert sum(numbers) == sum(v.numel() for v in without_counts(whole).values())
        parts = moved
    assert parts[0].keys() == whole.keys()
    assert all(torch.equal(parts[0][name], value) for name, value in whole.items())


@pytest.mark.parametrize("depth", [12, 20])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 6, 8])
def test_state_of_a_rank_is_what_the_plan_says(depth: int, world_size: int) -> None:
    config = GPTConfig.from_depth(depth, 50304)
    with torch.device("meta"):
        model = GPT(config)
    moments = {"embedding.weight": ("mean", "square"), "head.weight": ("mean", "square")}
    whole = {
        f"{name}.{moment}": torch.empty_like(parameter)
        for name, parameter in model.named_parameters()
        for moment in moments.get(name, ("momentum",))
    }
    numbers = []
    for rank in range(world_size):
        optimizer = build_optimizer(model, 0.02, 0.2, 0.004, 0.0, rank, world_size, torch.float32)
        optimizer.load_named_state([whole])
        numbers.append(sum(value.numel() for value in optimizer.named_state().values()))
    assert sum(numbers) == sum(value.numel() for value in whole.values()) == count_optimizer_values(config)
    assert max(numbers) == count_optimizer_values(config, world_size)
    assert max(numbers) <= 1.2 * sum(numbers) / world_size  # 12 matrices of a shape on 8 ranks: 2 or 1 each


class Arrived:
    """The work of a collective that needs no wire."""

    def is_completed(self) -> bool:
        return True

    def wait(self) -> None:
        pass


Sent = list[tuple[set[int], int]]


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    """What rank 0 of two sends to a silent partner: the numbers in each bucket, and how many gradients were there."""
    sent: Sent = []
    monkeypatch.setattr(sharding, "BUCKET_BYTES", 2 * 4 * 32 * 32 * 2)

    def reduce_scatter(output: Tensor, input: Tensor, async_op: bool) -> Arrived:
        assert async_op
        sent.append(({int(value) for value in input.unique()}, NUM_READY[0]))
        output.copy_(input[: output.numel()])
        return Arrived()

    monkeypatch.setattr(dist, "reduce_scatter_tensor", reduce_scatter)
    return sent


NUM_READY = [0]


def count_ready(model: GPT) -> None:
    """Count the gradients that autograd has finished, before the optimizer sees them."""

    def count(_: Tensor) -> None:
        NUM_READY[0] += 1

    NUM_READY[0] = 0
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(count)


def build_loss(model: GPT, order: Callable[[list], list] = list) -> Tensor:
    """A loss that gives parameter i the gradient i + 1. Autograd finishes what is computed last first."""
    loss = torch.zeros(())
    for index, parameter in order(list(enumerate(model.parameters()))):
        loss = loss + (index + 1) * parameter.sum()
    return loss


def test_gradients_leave_during_backward_from_the_head_down_to_the_embedding(sent: Sent) -> None:
    model, optimizer = build(0, 2)
    count_ready(model)
    with optimizer.reducing():
        build_loss(model).backward()
    num_parameters = len(list(model.parameters()))
    assert sent[0] == ({num_parameters}, 1)  # the head, as soon as it is there
    assert sent[-1] == ({0, 1}, num_parameters)  # the embedding, 127 rows and one of zeros
    assert len(sent) > 5
    layers = [max(numbers) for numbers, _ in sent]
    assert layers == sorted(layers, reverse=True)
    # The loss finishes gradient i as the (num_parameters - i + 1)-th: none waits for more than its own bucket.
    assert all(num_ready == num_parameters - min(numbers - {0}) + 1 for numbers, num_ready in sent)
    optimizer.reduce_gradients()
    assert sorted(set().union(*(numbers for numbers, _ in sent))) == list(range(num_parameters + 1))  # and padding


@pytest.mark.parametrize("order", [reversed, lambda items: sorted(items, key=lambda item: item[0] * 7 % 20)])
def test_the_order_of_sending_is_not_that_of_autograd(sent: Sent, order: Callable[[list], list]) -> None:
    model, optimizer = build(0, 2)
    with optimizer.reducing():
        build_loss(model).backward()
    optimizer.reduce_gradients()
    usual = [numbers for numbers, _ in sent]
    sent.clear()
    with optimizer.reducing():
        build_loss(model, order).backward()
    optimizer.reduce_gradients()
    assert [numbers for numbers, _ in sent] == usual
    sent.clear()
    build_loss(model, order).backward()
    optimizer.reduce_gradients()  # without `reducing`, all at once
    assert [numbers for numbers, _ in sent] == usual


def test_earlier_microbatches_are_not_sent(sent: Sent) -> None:
    model, optimizer = build(0, 2)
    for last in (False, False, True):
        assert not sent
        with optimizer.reducing(last):
            build_loss(model).backward()
    assert sent[0][0] == {3 * len(list(model.parameters()))}
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_backward_that_raises_leaves_nothing_armed(sent: Sent) -> None:
    model, optimizer = build(0, 2)

    def fail(_: Tensor) -> None:
        raise RuntimeError("out of memory")

    handle = dict(model.named_parameters())["blocks.1.mlp.up.weight"].register_post_accumulate_grad_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"), optimizer.reducing():
        build_loss(model).backward()
    assert 0 < len(sent) < 6
    handle.remove()
    model.zero_grad()
    sent.clear()
    build_loss(model).backward()
    assert not sent
    with optimizer.reducing():
        build_loss(model).backward()
    assert sent[0][0] == {2 * len(list(model.parameters()))}
    optimizer.reduce_gradients()
