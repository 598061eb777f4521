"""Kill downloads again and again, at random moments, while a third of the answers is bad; look for wrong files.

    python benchmarks/download.py --kills 200 --faults 0.3

The server is tests/hub_server.py, in a process of its own, with data made here. A worker fetches shards of text, a task
and the CORE bundle; it is killed with SIGKILL and started again until it is done. After each kill every file that is in
its place must be right, and the folder be a data set, or a bundle, only when it is whole; at the end all is there and
nothing half-done. Writes benchmarks/results/download.json.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import pyarrow as pa
import pyarrow.parquet as pq

from nanochat.cli.download import adopt
from nanochat.data.shards import verify_dataset
from nanochat.download.bundle import Bundle
from nanochat.download.faults import Patience
from nanochat.download.fetch import Fetcher, Order
from nanochat.download.hub import Hub
from nanochat.download.record import load_record
from nanochat.paths import Workspace

TEXT_REPO, TASK_REPO = "karpathy/fineweb-edu-100b-shuffle", "them/task"
NUM_SHARDS, SHARD_KB = 8, 1_500
PATIENCE = Patience(
    attempts=40,
    wrong_contents=20,
    first_wait_seconds=0.005,
    longest_wait_seconds=0.05,
    slow_bytes=10_000,
    slow_seconds=0.2,
)
"""Faults are many and waits short: a kill has to find work going on."""


@dataclass
class Tally:
    """What a series of kills came to. files_checked: in their places, after each kill and at each end."""

    kills: int = 0
    downloads: int = 0
    wrong_files: int = 0
    files_checked: int = 0
    parts_found: int = 0
    killed_before_any_file: int = 0
    seconds: float = 0.0


def make_data(folder: Path, num_shards: int = NUM_SHARDS, shard_kb: int = SHARD_KB, seed: int = 1) -> dict[str, str]:
    """Write what the server serves; return the SHA-256 of each file by its place in a workspace."""
    chance, hashes = random.Random(seed), {}

    def note(path: Path, place: str) -> None:
        hashes[place] = hashlib.sha256(path.read_bytes()).hexdigest()

    for index in range(num_shards):
        path = folder / "text" / f"shard_{index:05d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        texts = [chance.randbytes(50_000).hex() for _ in range(shard_kb // 50)]
        pq.write_table(pa.table({"text": texts}), path, row_group_size=10)
        note(path, f"data/fineweb-edu/{path.name}")
    for name in ("train", "test"):
        path = folder / "hub" / TASK_REPO / "main" / f"{name}-00000.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(chance.randbytes(400_000))
        note(path, f"tasks/{TASK_REPO}/main/{path.name}")
    for name in ("core.yaml", "eval_meta_data.csv", "eval_data/a.jsonl", "eval_data/b/c.jsonl"):
        path = folder / "core" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(chance.randbytes(300_000).hex().encode())
        note(path, f"core/{name}")
    return hashes


def download(workspace: Workspace, url: str, num_shards: int = NUM_SHARDS) -> None:
    """What a worker does: all that a preset needs, from a server that fails."""
    fetcher = Fetcher(lambda: Hub(url, 0.3), patience=PATIENCE, finish=adopt)
    text = Order(TEXT_REPO, workspace.dataset("fineweb-edu"), ("shard_*.parquet",), num_shards)
    task = Order(TASK_REPO, workspace.tasks / TASK_REPO, ("main/*.parquet",))
    fetcher.fetch([text, task], [Bundle(f"{url}/files/eval_bundle.zip", workspace.core)])


def start_worker(work: Callable[[], None]) -> int:
    """Fork a process that does the work and ends with 0, or with 1 and a traceback."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def find_wrong(home: Path, hashes: dict[str, str], tally: Tally) -> list[str]:
    """What is wrong in a workspace whose download was killed: files, records, sets that are not whole."""
    wrong = []
    for path in sorted(home.rglob("*")):
        place = path.relative_to(home).as_posix()
        if path.is_dir() or any(part.startswith(".") for part in path.relative_to(home).parts):
            tally.parts_found += path.name.endswith(".part")
            continue
        if path.name == "source.json":
            record = load_record(path.parent)
            assert record is not None
            for name in record.here:
                if path.parent.name != "core" and not (path.parent / name).is_file():
                    wrong.append(f"{place} says that {name} is here, and it is not")
        elif path.name == "shards.json":
            verify_dataset(path.parent)
        else:
            tally.files_checked += 1
            if hashlib.sha256(path.read_bytes()).hexdigest() != hashes.get(place):
                wrong.append(place)
    if (home / "core/core.yaml").is_file():
        wrong += [place for place in hashes if place.startswith("core/") and not (home / place).is_file()]
    return wrong


def crash(
    home: Path,
    work: Callable[[Workspace], None],
    hashes: dict[str, str],
    num_kills: int,
    seed: int,
    span_seconds: float,
    tell: Callable[[str], None] = lambda text: None,
) -> Tally:
    """Kill workers until num_kills have died, each download resumed to its end.

    span_seconds: a kill comes at a random moment up to this after a start. Raises AssertionError where a file is wrong.
    """
    chance, tally, started = random.Random(seed), Tally(), time.perf_counter()
    while tally.kills < num_kills:
        folder = home / f"home-{tally.downloads}"
        while True:
            pid = start_worker(lambda: work(Workspace(folder)))  # noqa: B023 - forked at once
            if tally.kills < num_kills:
                time.sleep(chance.uniform(0, span_seconds))
                os.kill(pid, signal.SIGKILL)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            wrong = find_wrong(folder, hashes, tally) if folder.exists() else []
            tally.wrong_files += len(wrong)
            assert not wrong, f"after {tally.kills} kills: {wrong}"
            assert status in (0, -signal.SIGKILL), f"exit {status} after {tally.kills} kills"
            if status == 0:
                break
            tally.kills += 1
            tally.killed_before_any_file += not any(folder.rglob("*.parquet"))
            tell(f"{tally.kills} of {num_kills} kills, {tally.downloads} downloads done")
        check_end(folder, hashes)
        shutil.rmtree(folder)
        tally.downloads += 1
    tally.seconds = round(time.perf_counter() - started, 1)
    return tally


def check_end(home: Path, hashes: dict[str, str]) -> None:
    """Raise AssertionError unless all is there and nothing is left over."""
    found = {path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()}
    kept = {place for place in found if Path(place).name not in (".lock", "source.json", "shards.json")}
    assert kept == set(hashes), f"missing {sorted(set(hashes) - kept)}, left over {sorted(kept - set(hashes))}"
    verify_dataset(home / "data/fineweb-edu")


@contextmanager
def run_server(data: Path, faults: float, seed: int, rate: float) -> Iterator[str]:
    """The server in a process of its own; yields its address."""
    script = Path(__file__).parents[1] / "tests" / "hub_server.py"
    words = [f"--data={data}", f"--faults={faults}", f"--seed={seed}", f"--rate={rate}"]
    process = subprocess.Popen([sys.executable, str(script), *words], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = next(line for line in process.stdout if line.startswith("HF_ENDPOINT="))
        yield line.split()[0].removeprefix("HF_ENDPOINT=")
    finally:
        process.terminate()
        process.wait()


def measure_span(home: Path, work: Callable[[Workspace], None]) -> float:
    """Seconds of a download that nobody kills."""
    started = time.perf_counter()
    pid = start_worker(lambda: work(Workspace(home / "whole")))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, "the download that nobody kills failed"
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--faults", type=float, default=0.3, help="share of the answers that are bad")
    parser.add_argument("--rate", type=float, default=5e6, help="bytes a second of one connection")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "download.json")
    options = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="nanochat-download-"))
    hashes = make_data(home / "served")

    def tell(text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)

    with run_server(home / "served", options.faults, options.seed, options.rate) as url:

        def work(workspace: Workspace) -> None:
            download(workspace, url)

        span = measure_span(home, work)
        check_end(home / "whole", hashes)
        tell(f"a download takes {span:.1f} s")
        tally = crash(home, work, hashes, options.kills, options.seed, span, tell)
    record = {
        "files": len(hashes),
        "bytes": sum(path.stat().st_size for path in (home / "served").rglob("*") if path.is_file()),
        "faults": options.faults,
        "rate": options.rate,
        "seed": options.seed,
        "undisturbed_seconds": round(span, 2),
        **asdict(tally),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))
    shutil.rmtree(home)


if __name__ == "__main__":
    main()
