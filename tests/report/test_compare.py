import json

from nanochat.paths import RunPaths
from nanochat.report.collect import collect_report
from nanochat.report.compare import render_comparison


def test_two_runs_show_what_differs_and_nothing_else(run: RunPaths, tmp_path_factory) -> None:
    other = RunPaths(tmp_path_factory.mktemp("runs") / "other")
    for path in run.root.rglob("*"):
        if path.is_file():
            target = other.root / path.relative_to(run.root)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    settings = json.loads(other.settings.read_text())
    settings["settings"]["model"]["depth"] = 6
    other.settings.write_text(json.dumps(settings))
    score = {"name": "letters", "correct": 4, "total": 4, "accuracy": 1.0, "stderr": 0.0}
    (other.eval / "mid_letters.json").write_text(json.dumps(score))
    (other.eval / "base_bpb.json").unlink()
    text = render_comparison(collect_report(run), collect_report(other))
    assert "| `model.depth` | `4` | `6` |" in text and "matrix_lr" not in text
    assert "| mid | letters | 75.0 % | 100.0 % | +25.0 % (1.2 std. errors) |" in text
    assert "| base | bpb | 1.2500 | not run | - |" in text
    assert "| base | 5 min 12 s | 5 min 12 s |" in text


def test_a_run_does_not_differ_from_itself(run: RunPaths, attacked: RunPaths) -> None:
    text = render_comparison(collect_report(run), collect_report(run))
    assert "## Settings that differ\n\nNone." in text
    assert "<script>" not in text.replace("\\<script\\>", "")
