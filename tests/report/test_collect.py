import json
import subprocess
import sys
from pathlib import Path

import pytest

from nanochat.paths import RunPaths
from nanochat.report.collect import collect_report
from nanochat.report.html import render_html
from nanochat.report.markdown import render_markdown
from tests.patience import PATIENCE_SECONDS


def test_every_stage_says_whether_it_is_done_unfinished_or_not_run(run: RunPaths) -> None:
    stages = {stage.name: stage.status for stage in collect_report(run).stages}
    assert stages == {"tokenizer": "done", "base": "done", "mid": "unfinished", "sft": "not run"}


def test_curves_times_and_rates_come_from_the_files(run: RunPaths) -> None:
    base = {stage.name: stage for stage in collect_report(run).stages}["base"]
    assert base.train_loss == ((0, 4.0), (1, 3.5), (2, 3.0), (3, 2.5))
    assert base.val_bpb == ((2, 1.5), (4, 1.25))
    assert (base.seconds, base.tokens, base.tokens_per_second, base.mfu) == (312, 8192, 1002, None)
    assert base.last_step == 4


def test_a_resumed_step_counts_once_with_its_last_value(run: RunPaths) -> None:
    mid = {stage.name: stage for stage in collect_report(run).stages}["mid"]
    assert mid.train_loss == ((0, 3.0), (1, 2.5))
    assert mid.seconds == 7.0


def test_a_torn_last_line_is_left_out_and_said(run: RunPaths) -> None:
    assert collect_report(run).problems == ("mid/metrics.jsonl: left out line 4 (cut short)",)


def test_settings_keep_their_order_and_say_where_they_come_from(run: RunPaths) -> None:
    assert collect_report(run).settings == (
        ("model.depth", 4, "preset demo"),
        ("model.n_kv_head", None, "default"),
        ("base.matrix_lr", 0.02, "--set"),
        ("sft.mixture", ["a", "b"], "default"),
    )


def test_scores_carry_their_number_of_examples_and_standard_error(run: RunPaths) -> None:
    bpb, letters = collect_report(run).scores
    assert (bpb.stage, bpb.name, bpb.value, bpb.is_accuracy) == ("base", "bpb", 1.25, False)
    assert (letters.stage, letters.name, letters.value, letters.is_accuracy) == ("mid", "letters", 0.75, True)
    assert (letters.total, letters.correct, letters.stderr, letters.too_long) == (4, 3, 0.2165, 1)
    assert letters.answers[0].correct is True


def test_a_run_that_holds_nothing_is_a_report_all_the_same(tmp_path: Path) -> None:
    data = collect_report(RunPaths(tmp_path / "nothing"))
    assert [stage.status for stage in data.stages] == ["not run"] * 4
    assert (data.settings, data.scores, data.environment, data.problems) == ((), (), {}, ())


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1, 2]", b"null", b"\xff\xfe", b'{"settings": 3, "origins": []}', b"[" * 9999]
)
@pytest.mark.parametrize(
    "name",
    [
        "settings.json",
        "environment.json",
        "base/plan.json",
        "base/result.json",
        "eval/base_bpb.json",
        "base/metrics.jsonl",
    ],
)
def test_a_spoilt_file_never_stops_the_report(run: RunPaths, name: str, content: bytes) -> None:
    (run.root / name).write_bytes(content)
    data = collect_report(run)
    mid = {stage.name: stage for stage in data.stages}["mid"]
    assert (mid.status, mid.train_loss) == ("unfinished", ((0, 3.0), (1, 2.5)))  # the files beside it are read
    if name.endswith(".json") and not content.startswith(b'{"'):
        assert any(problem.startswith(name) for problem in data.problems)


@pytest.mark.parametrize("value", ["text", None, True, [], {}, 1e999, -1])
def test_values_of_an_unexpected_kind_never_stop_the_report(run: RunPaths, value: object) -> None:
    line = {"step": value, "loss": value, "val_bpb": value, "tokens_per_second": value, "mfu": value, "prompt": value}
    (run.root / "base/metrics.jsonl").write_text(json.dumps(line) + "\n" + json.dumps({**line, "step": 3}))
    (run.root / "base/samples.jsonl").write_text(json.dumps(line))
    (run.root / "base/result.json").write_text(json.dumps({"seconds": value, "step": value, "environment": value}))
    score = {"name": value, "stage": value, "accuracy": value, "samples": value, "score": value, "total": value}
    (run.root / "eval/base_bpb.json").write_text(json.dumps(score))
    data = collect_report(run)
    assert [stage.name for stage in data.stages] == ["tokenizer", "base", "mid", "sft"]
    assert "letters" in [score.name for score in data.scores]
    assert "Stage sft: not run." in render_markdown(data) and "Stage sft: not run." in render_html(data)


def test_reading_changes_no_file(run: RunPaths) -> None:
    def content() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in run.root.rglob("*") if path.is_file()}

    before = content()
    collect_report(run)
    assert content() == before


def test_reports_load_no_torch() -> None:
    modules = "collect, html, markdown, plot, tables"
    code = f"import sys; from nanochat import machine; from nanochat.report import {modules}; "
    code += "machine.describe_environment(); "
    code += "sys.exit('torch' in sys.modules or 'pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=PATIENCE_SECONDS).returncode == 0
