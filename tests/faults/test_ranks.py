"""Two gloo processes save together: where one cannot, both end with an error at once, and nothing is lost."""

import errno
import json
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from nanochat.checkpoint.checkpoint import check_shared, latest_good, save_checkpoint
from nanochat.checkpoint.manifest import MANIFEST
from nanochat.errors import MissingError, NanochatError
from nanochat.paths import StagePaths
from nanochat.runtime import World
from tests.patience import wait_until


def save(stage: StagePaths, step: int, world: World) -> None:
    optimizer = {"a.momentum": torch.full((4,), step + world.rank / 2)}
    model = {"a": torch.full((8,), float(step))} if world.is_main else {}
    save_checkpoint(stage, step, model, optimizer, {"step": step}, {}, keep=2, world=world)


def describe(error: NanochatError) -> dict:
    return {"kind": type(error).__name__, "message": error.message}


def fail_to_write(descriptor: int, block: object) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


def fail_to_find(rank: int) -> None:
    raise MissingError(f"rank {rank} finds nothing")


def run_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    world, stage = World(rank, rank, 2), StagePaths(Path(folder) / "run" / "base")
    seen: dict = {}
    check_shared(stage, world)
    for step in (10, 20):
        save(stage, step, world)
    for failing in (0, 1):
        write = os.write
        if rank == failing:
            os.write = fail_to_write  # type: ignore[assignment]
        try:
            save(stage, 30, world)
        except NanochatError as error:
            seen[f"save{failing}"] = describe(error)
        os.write = write
    world.barrier()
    if rank == 0:
        seen["left"] = sorted(path.name for path in stage.checkpoints.iterdir())
        path = stage.checkpoint(20) / "optim_rank001_of_002.safetensors"
        path.write_bytes(path.read_bytes()[:-1])
    world.barrier()
    said: list[str] = []
    found = latest_good(stage, said.append, world=world)
    assert found is not None
    seen |= {"step": found[0], "said": said, "momentum": [t["a.momentum"][0].item() for t in found[1].optimizer]}
    manifest, kept = stage.checkpoint(10) / MANIFEST, stage.checkpoint(10) / "kept"
    if rank == 0:
        manifest.rename(kept)
        manifest.symlink_to("/proc/self/mem")  # its first byte cannot be read
    world.barrier()
    try:
        latest_good(stage, said.append, world=world)
    except NanochatError as error:
        seen["unreadable"] = describe(error) | {"steps": stage.steps()}
    world.barrier()
    if rank == 0:
        kept.replace(manifest)
    seen["asked"] = world.ask_main(lambda: f"rank {rank}")
    try:
        world.ask_main(lambda: fail_to_find(rank))
    except NanochatError as error:
        seen["missing"] = describe(error)
    alone = StagePaths(Path(folder) / f"machine{rank}" / "base")
    try:
        check_shared(alone, world, seconds=0.5)
    except NanochatError as error:
        seen["shared"] = describe(error)
    Path(folder, f"{rank}.json").write_text(json.dumps(seen))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    context = mp.spawn(run_rank, (str(folder),), nprocs=2, join=False)  # type: ignore[attr-defined]
    assert context is not None
    wait_until(lambda: context.join(timeout=1))
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("failing", [0, 1])
def test_a_rank_that_cannot_save_ends_the_save_of_all(seen: list[dict], failing: int) -> None:
    own, other = seen[failing][f"save{failing}"], seen[1 - failing][f"save{failing}"]
    assert own["kind"] == other["kind"] == "CapacityError"
    assert not own["message"].startswith("rank") and other["message"] == f"rank {failing}: {own['message']}"
    assert seen[0]["left"] == ["step_000010", "step_000020"]


def test_a_file_that_only_one_rank_reads_makes_all_go_back(seen: list[dict]) -> None:
    assert [rank["step"] for rank in seen] == [10, 10]
    assert [rank["momentum"] for rank in seen] == [[10.0], [10.5]]
    for rank in seen:
        assert "step_000020 is bad" in rank["said"][0] and "optim_rank001_of_002" in rank["said"][0]


def test_what_cannot_be_read_now_ends_all_ranks_alike_and_stays(seen: list[dict]) -> None:
    for rank in seen:
        assert rank["unreadable"]["kind"] == "UnreadableError" and rank["unreadable"]["steps"] == [10]


def test_rank_0_answers_for_all(seen: list[dict]) -> None:
    for rank in seen:
        assert rank["asked"] == "rank 0"
        assert rank["missing"] == {"kind": "MissingError", "message": "rank 0 finds nothing"}


def test_a_run_directory_that_is_not_shared_is_an_error_on_every_rank(seen: list[dict]) -> None:
    for rank in seen:
        assert rank["shared"]["kind"] == "UsageError" and "ranks 1 do not see" in rank["shared"]["message"]
