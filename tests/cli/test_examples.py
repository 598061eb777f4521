"""The scripts in examples/, with a scheduler that only writes down and a command line that only checks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.cli.conftest import make_run

EXAMPLES = Path(__file__).parents[2] / "examples"
NANOCHAT = """#!/bin/bash
echo "nanochat $*" >> "$CALLS"
[ "$1" = run ] || exit 0
{python} -m nanochat.cli.main "$@" --device cpu --gpus 2 --dry-run >> "$CALLS" 2>&1 || exit
exit "$CODE"
"""
SRUN = '#!/bin/bash\nshift\nexport SLURM_NODEID=1\nexec "$@"\n'
SCONTROL = '#!/bin/bash\n[ "$1" = show ] && printf "node7\\nnode8\\n" || echo "scontrol $*" >> "$CALLS"\n'


def run_script(text: str, tmp_path: Path, home: Path, *arguments: str, **environ: object) -> tuple[int, list[str]]:
    """The exit code, and what was called."""
    folder = tmp_path / "bin"
    folder.mkdir(exist_ok=True)
    programs = {"nanochat": NANOCHAT.format(python=sys.executable), "srun": SRUN, "scontrol": SCONTROL}
    for name, program in programs.items():
        (folder / name).write_text(program)
        (folder / name).chmod(0o755)
    calls = tmp_path / "calls"
    calls.unlink(missing_ok=True)
    values = {"PATH": f"{folder}:{os.environ['PATH']}", "CALLS": calls, "NANOCHAT_HOME": home, **environ}
    code = subprocess.call(
        ["bash", "-c", text, "script", *arguments], env={**os.environ, **{k: str(v) for k, v in values.items()}}
    )
    return code, calls.read_text().splitlines()


@pytest.mark.parametrize("code", [0, 75, 6])
def test_the_slurm_script_queues_itself_again_where_it_was_stopped(tmp_path: Path, home: Path, code: int) -> None:
    make_run(home, "demo", ("tokenizer",))
    options = ("--preset", "demo", "--set", "batch.device_batch_size=4")
    status, calls = run_script(
        (EXAMPLES / "slurm.sh").read_text(),
        *(tmp_path, home, *options),
        CODE=code,
        SLURM_JOB_ID=12345,
        SLURM_JOB_NODELIST="node[7-8]",
        SLURM_NNODES=2,
    )
    assert status == code, calls
    assert calls[0] == f"nanochat tokenize train {' '.join(options)}"
    cluster = "--gpus all --max-restarts 3 --nodes 2 --node-rank 1 --rdzv-endpoint node7:22345"
    assert calls[1] == f"nanochat run {' '.join(options)} {cluster}"
    assert "--node-rank=1 --rdzv-backend=c10d --rdzv-endpoint=node7:22345" in " ".join(calls)
    assert [call for call in calls if call.startswith("scontrol")] == ["scontrol requeue 12345"] * (code == 75)


@pytest.mark.parametrize("rank", [0, 1])
def test_the_skypilot_file_calls_every_node_with_its_rank(tmp_path: Path, home: Path, rank: int) -> None:
    make_run(home, "demo", ("tokenizer",))
    task = yaml.safe_load((EXAMPLES / "skypilot.yaml").read_text())
    assert task["num_nodes"] == 2 and task["volumes"].keys() == {task["envs"]["NANOCHAT_HOME"]}
    status, calls = run_script(
        *(task["run"], tmp_path, home),
        CODE=0,
        PRESET="demo",
        OPTIONS="--set batch.device_batch_size=4",
        SKYPILOT_NODE_RANK=rank,
        SKYPILOT_NUM_NODES=2,
        SKYPILOT_NUM_GPUS_PER_NODE=8,
        SKYPILOT_NODE_IPS="10.0.0.1\n10.0.0.2",
    )
    assert status == 0, calls
    assert len([call for call in calls if call.startswith("nanochat tokenize train --preset demo")]) == 1 - rank
    assert any(f"--node-rank={rank} --rdzv-backend=c10d --rdzv-endpoint=10.0.0.1:29500" in call for call in calls)
