"""Two processes that share an optimizer train like one: the same weights, half of the state each."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from nanochat.model.config import GPTConfig
from nanochat.model.gpt import GPT
from nanochat.model.optim import MuonAdamW, build_optimizer

# Three layers and 2 ranks: 12 square matrices, but 3 of each MLP shape, so that a block is not full. 65 ids make 128
# rows; cut to 127 they are an odd number, so that the last slice of a table is short.
CONFIG = GPTConfig(n_layer=3, n_embd=16, n_head=2, n_kv_head=2, context=8, vocab_size=65)
NUM_STEPS = 3


def build(rank: int, world_size: int) -> tuple[GPT, MuonAdamW]:
    model = GPT(CONFIG)
    model.embedding.weight = torch.nn.Parameter(model.embedding.weight[:127].detach().clone())
    model.init_weights(0)
    return model, build_optimizer(model, 0.02, 0.2, 0.004, 0.1, rank, world_size, torch.float32)


def train(rank: int, world_size: int) -> tuple[GPT, MuonAdamW, list[float]]:
    """Rank r takes rows r, r + n, ... of the same batches; the loss is summed, as in the training loop."""
    torch.set_num_threads(1)
    model, optimizer = build(rank, world_size)
    norms = []
    for step in range(NUM_STEPS):
        ids = torch.randint(65, (4, 8), generator=torch.Generator().manual_seed(step))[rank::world_size]
        (model.loss(ids, ids.roll(-1, 1)) / 32).backward()
        optimizer.reduce_gradients()
        norms.append(optimizer.clip_grad_norm(0.5).item())
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer, norms


def run_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    model, optimizer, norms = train(rank, 2)
    state = optimizer.named_state()
    resumed_model, resumed = build(rank, 2)
    resumed.load_named_state([state])
    same = all(torch.equal(value, resumed.named_state()[name]) for name, value in state.items())
    torch.save({"model": model.state_dict(), "state": state, "norms": norms, "same": same}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_state_moves_to_any_number_of_ranks_and_back() -> None:
    _, optimizer, _ = train(0, 1)
    whole = optimizer.named_state()
    parts = [whole]
    for world_size in (2, 4, 3, 6, 8, 1):
        moved = []
        for rank in range(world_size):
            _, mine = build(rank, world_size)
            mine.load_named_state(parts)
            moved.append(mine.named_state())
        numbers = [sum(v.numel() for n, v in part.items() if not n.endswith(".step")) for part in moved]
        assert sum(numbers) == sum(v.numel() for n, v in whole.items() if not n.endswith(".step"))
        parts = moved
    assert parts[0].keys() == whole.keys()
    assert all(torch.equal(parts[0][name], value) for name, value in whole.items())


@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
def test_two_ranks_train_like_one_with_half_of_the_state_each(tmp_path: Path) -> None:
    mp.spawn(run_rank, (str(tmp_path),), nprocs=2)  # type: ignore[attr-defined]
    alone, optimizer, norms = train(0, 1)
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for result in results:
        assert result["same"]
        assert result["norms"] == pytest.approx(norms, rel=1e-5)
        for name, weight in alone.state_dict().items():
            torch.testing.assert_close(result["model"][name], weight, rtol=1e-4, atol=1e-5)
    whole = {name: value for name, value in optimizer.named_state().items() if not name.endswith(".step")}
    halves = [{n: v for n, v in result["state"].items() if not n.endswith(".step")} for result in results]
    assert sum(v.numel() for half in halves for v in half.values()) == sum(v.numel() for v in whole.values())
    for name, value in whole.items():
        parts = [half[name] for half in halves if name in half]
        torch.testing.assert_close(torch.cat(parts), value, rtol=1e-3, atol=1e-6)
    assert not any(name in halves[1] for name in halves[0] if name.endswith("momentum"))
