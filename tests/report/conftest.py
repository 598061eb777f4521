"""A finished run as files: what the stages leave, small enough to know every number."""

import json
from pathlib import Path

import pytest

from nanochat.paths import RunPaths

ATTACK = '<script>alert(1)</script>\n```\n| "x" | **bold** & \x1b[31m'


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_lines(path: Path, values: list[dict], torn: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in values) + torn, encoding="utf-8")


@pytest.fixture
def run(tmp_path: Path) -> RunPaths:
    """Tokenizer and base are done, mid was killed while it logged, sft never ran; two scores."""
    run = RunPaths(tmp_path / "demo")
    write_json(
        run.settings,
        {
            "preset": "demo",
            "nanochat_version": "0.1.0",
            "settings": {
                "model": {"depth": 4, "n_kv_head": None},
                "base": {"matrix_lr": 0.02},
                "sft": {"mixture": ["a", "b"]},
            },
            "origins": {"model.depth": "preset demo", "base.matrix_lr": "--set"},
        },
    )
    write_json(run.root / "environment.json", {"python": "3.11.2", "cores": 2, "packages": {"torch": "2.9.0"}})
    write_json(run.stage("tokenizer").result, {"stage": "tokenizer", "vocab_size": 4096, "seconds": 12.5})
    base = run.stage("base")
    write_json(base.plan, {"num_steps": 4, "total_tokens": 2048, "num_params": 1_234_567})
    lines: list[dict] = [
        {
            "step": step,
            "loss": 4.0 - 0.5 * step,
            "tokens": 2048 * (step + 1),
            "tokens_per_second": 1000 + step,
            "mfu": None,
        }
        for step in range(4)
    ]
    write_lines(base.metrics, [*lines, {"step": 2, "val_bpb": 1.5}, {"step": 4, "val_bpb": 1.25}])
    write_json(base.result, {"stage": "base", "step": 4, "val_bpb": 1.25, "seconds": 312})
    samples = [{"step": 2, "prompt": "Once", "text": " early"}, {"step": 4, "prompt": "Once", "text": " upon a time"}]
    write_lines(base.samples, samples)
    # Resumed from step 1: the second line of step 1 is the one that counts. The last line was cut by a crash.
    mid = [{"step": 0, "loss": 3.0}, {"step": 1, "loss": 9.0}, {"step": 1, "loss": 2.5, "seconds": 7.0, "tokens": 4096}]
    write_lines(run.stage("mid").metrics, mid, torn='{"step": 2, "lo')
    accuracy = {"name": "letters", "correct": 3, "total": 4, "accuracy": 0.75, "stderr": 0.2165, "too_long": 1}
    answers = [{"question": "How many r?", "answer": "[x.count -> 3] 3", "correct": True}]
    write_json(run.eval / "mid_letters.json", accuracy | {"samples": answers})
    write_json(run.eval / "base_bpb.json", {"name": "bpb", "bpb": 1.25, "num_tokens": 4096})
    return run


@pytest.fixture
def attacked(run: RunPaths) -> RunPaths:
    """The same with an attack in every text that a file can carry."""
    settings = {"preset": ATTACK, "nanochat_version": ATTACK, "settings": {ATTACK: ATTACK}, "origins": {ATTACK: ATTACK}}
    write_json(run.settings, settings)
    write_json(run.root / "environment.json", {ATTACK: ATTACK, "list": [ATTACK]})
    write_json(run.stage("base").plan, {ATTACK: ATTACK})
    write_json(run.stage("base").result, {ATTACK: ATTACK})
    write_lines(run.stage("base").samples, [{"step": 4, "prompt": ATTACK, "text": ATTACK}])
    sample = {"question": ATTACK, "answer": ATTACK, "correct": False}
    score = {"name": ATTACK, "stage": ATTACK, "accuracy": 0.0, "total": 1, "correct": 0, "stderr": 0.0}
    write_json(run.eval / "mid_letters.json", score | {"samples": [sample]})
    return run
