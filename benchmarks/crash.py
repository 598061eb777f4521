"""Kill a training worker again and again, at random moments and inside its saves, and compare every loss.

    python benchmarks/crash.py --preset demo --random 100 --inside-saves 100

A run is killed with SIGKILL and resumed until it is done; its losses, weights and optimizer must be those of the run
that nothing happened to, bit for bit, and no checkpoint may ever be found bad. Kills inside saves come in the middle
of the k-th call that changes a file of a checkpoint (tests/faults/inject.c). One thread, not compiled: the workers
are forked. Linux with a C compiler. Writes benchmarks/results/crash.json.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from nanochat.paths import StagePaths
from nanochat.training.metrics import MetricsFile
from tests.faults.workers import KILL, Fault, Workers

SIGKILLED = -9


@dataclass
class Tally:
    """What a series of kills came to."""

    kind: str
    kills: int = 0
    resumed: int = 0
    """Kills after which the run went on to its end."""
    runs: int = 0
    steps_compared: int = 0
    seconds: float = 0.0


def crash(
    workers: Workers,
    new_run: Callable[[str], Path],
    whole: StagePaths,
    kind: str,
    num_kills: int,
    seed: int,
    calls_per_save: int,
    span_seconds: float,
    tell: Callable[[str], None] = lambda text: None,
) -> Tally:
    """Kill workers until num_kills have died, each run resumed to its end. Raises AssertionError where one differs.

    new_run: makes a fresh run with a given name; returns its settings.json. kind: "random" or "inside". seed: of the
    moments: up to span_seconds after a start, or within the first two saves, of calls_per_save calls each.
    """
    chance, tally, started = random.Random(seed), Tally(kind), time.perf_counter()
    while tally.kills < num_kills:
        settings = new_run(f"{kind}-{tally.runs}")
        stage = StagePaths(settings.parent / whole.root.name)
        arguments = [whole.root.name, str(settings)]
        kills_before = tally.kills
        while True:
            if tally.kills == num_kills:
                ended = workers.run(arguments)
            elif kind == "random":
                ended = workers.run_and_kill(arguments, chance.uniform(0.0, span_seconds))
            else:
                ended = workers.run(arguments, Fault("/checkpoints", chance.randint(1, 2 * calls_per_save), KILL))
            assert ended.status in (0, SIGKILLED), f"exit {ended.status} after {tally.kills} kills: {ended.said}"
            assert "is bad" not in ended.said, ended.said
            tally.steps_compared += compare_losses(stage, whole)
            if ended.status == 0:
                break
            tally.kills += 1
            tell(f"{kind}: {tally.kills} of {num_kills} kills, step {max(stage.steps(), default=0)}")
        compare_ends(stage, whole)
        tally.resumed += tally.kills - kills_before
        tally.runs += 1
    tally.seconds = round(time.perf_counter() - started, 1)
    return tally


def compare_losses(stage: StagePaths, whole: StagePaths) -> int:
    """Raise AssertionError where a loss differs in any bit from the one of its step; returns how many there were."""
    expected = MetricsFile(whole.metrics).values("loss")
    losses = [(record["step"], record["loss"]) for record in MetricsFile(stage.metrics).read() if "loss" in record]
    assert [step for step, _ in losses] == list(range(1, len(losses) + 1)), "a step is missing or there twice"
    differing = [(step, loss, expected.get(step)) for step, loss in losses if loss != expected.get(step)]
    assert not differing, f"losses differ, first (step, loss, expected) = {differing[0]}"
    return len(losses)


def compare_ends(stage: StagePaths, whole: StagePaths) -> None:
    """Raise AssertionError where a finished stage is not the other one, or has left something behind."""
    step = whole.steps()[-1]
    assert compare_losses(stage, whole) == len(MetricsFile(whole.metrics).values("loss"))
    assert MetricsFile(stage.metrics).values("val_bpb") == MetricsFile(whole.metrics).values("val_bpb")
    for name in ("model.safetensors", "optim_rank000_of_001.safetensors"):
        same = (stage.checkpoint(step) / name).read_bytes() == (whole.checkpoint(step) / name).read_bytes()
        assert same, f"{name} of step {step} differs"
    assert stage.result.is_file()
    unexpected = [path.name for path in stage.checkpoints.iterdir() if not path.name.startswith("step_")]
    assert not unexpected, f"left behind: {unexpected}"


def measure(workers: Workers, arguments: list[str], whole: StagePaths) -> tuple[float, float]:
    """Of a stage that is done: seconds of a start and of a step."""
    started = time.perf_counter()
    assert workers.run(arguments).status == 0
    start_seconds = time.perf_counter() - started
    seconds = max(MetricsFile(whole.metrics).values("seconds").values())
    return start_seconds, seconds / whole.steps()[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--random", type=int, default=100, help="kills at random moments")
    parser.add_argument("--inside-saves", type=int, default=100, help="kills inside saves")
    parser.add_argument("--every", type=int, default=2, help="steps between two checkpoints")
    parser.add_argument("--set", action="append", default=[], help="settings, such as base.num_steps=100")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--home", type=Path, help="default: a temporary folder")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "crash.json")
    options = parser.parse_args()

    from nanochat.config.load import load_settings, save_settings
    from nanochat.paths import Workspace
    from nanochat.stages.dataset import open_dataset
    from nanochat.stages.display import Display

    def tell(text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)

    home = options.home or Path(tempfile.mkdtemp(prefix="nanochat-crash-"))
    fixed = ["runtime.compile=false", "runtime.device=cpu", "runtime.dtype=float32"]
    overrides = [*fixed, f"checkpoint.every={options.every}", *options.set]
    settings, origins = load_settings(options.preset, None, overrides, {})
    open_dataset(Workspace(home), settings.data.dataset, Display().say)

    def new_run(name: str) -> Path:
        run = Workspace(home).run(name)
        shutil.rmtree(run.root, ignore_errors=True)
        save_settings(run.settings, options.preset, settings, origins, "")
        if name != "whole":
            shutil.copytree(Workspace(home).run("whole").tokenizer, run.tokenizer)
        return run.settings

    with Workers(home / "workers") as workers:
        path = str(new_run("whole"))
        tell(f"the run that nothing happens to, in {home}")
        assert workers.run(["tokenizer", path]).status == 0
        ended = workers.run(["base", path], Fault("/checkpoints", 0))
        assert ended.status == 0, ended.said
        whole = Workspace(home).run("whole").stage("base")
        num_saves = -(-whole.steps()[-1] // options.every)
        start_seconds, step_seconds = measure(workers, ["base", path], whole)
        span = start_seconds + 2 * options.every * step_seconds
        tell(f"{whole.steps()[-1]} steps of {step_seconds:.2f} s, {ended.calls // num_saves} calls a save")
        tallies = [
            crash(workers, new_run, whole, kind, number, options.seed, ended.calls // num_saves, span, tell)
            for kind, number in (("random", options.random), ("inside", options.inside_saves))
        ]
    record = {
        "preset": options.preset,
        "overrides": overrides,
        "steps": whole.steps()[-1],
        "step_seconds": round(step_seconds, 3),
        "calls_per_save": ended.calls // num_saves,
        "seed": options.seed,
        "losses": "bit-identical",
        "kinds": [asdict(tally) for tally in tallies],
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))
    if options.home is None:
        shutil.rmtree(home)


if __name__ == "__main__":
    main()
