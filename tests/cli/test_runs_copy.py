"""`nanochat runs copy`, and runs whose files are damaged."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from nanochat.paths import Workspace
from nanochat.stages.lock import hold_run
from tests.cli.conftest import Outcome, make_run

Call = Callable[..., Outcome]
DONE = ("tokenizer", "base", "mid", "sft")


def test_a_copy_has_the_stages_and_shares_the_weights(nanochat: Call, home: Path) -> None:
    run = make_run(home, "r", DONE)
    (run.root / "sft" / "checkpoints" / "step_000020" / "model.safetensors").parent.mkdir(parents=True, exist_ok=True)
    (run.root / "mid" / "checkpoints").mkdir(parents=True, exist_ok=True)
    weights = run.root / "mid" / "checkpoints" / "weights"
    weights.write_bytes(b"w")
    outcome = nanochat("runs", "copy", "r", "trial", "--until", "mid")
    assert outcome.code == 0 and "next:  nanochat train sft --run trial" in outcome.err
    trial = Workspace(home).run("trial")
    assert (trial.root / "mid" / "checkpoints" / "weights").stat().st_ino == weights.stat().st_ino
    assert trial.stage("mid").result.stat().st_ino != run.stage("mid").result.stat().st_ino
    assert not (trial.root / "sft").exists() and trial.settings.read_text() == run.settings.read_text()
    assert nanochat("runs", "rm", "r", "-y").code == 0 and (trial.root / "mid" / "checkpoints" / "weights").exists()
    assert [path.name for path in Workspace(home).runs.iterdir()] == ["trial"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["none", "x"], 3, "there is no run 'none'"),
        (["r", "r"], 2, "run 'r' exists already"),
        (["r", "x", "--until", "rl"], 3, "run 'r' has no finished rl"),
        (["new", "x"], 3, "run 'new' has no finished stage"),
        (["r", "a/b", "--until", "sft"], 2, "is not a name"),
    ],
)
def test_what_cannot_be_copied(nanochat: Call, home: Path, words: list[str], code: int, said: str) -> None:
    make_run(home, "r", DONE)
    make_run(home, "new")
    outcome = nanochat("runs", "copy", *words)
    assert outcome.code == code and said in outcome.err
    assert sorted(path.name for path in Workspace(home).runs.iterdir()) == ["new", "r"]


@pytest.mark.parametrize(
    ("done", "next_command"),
    [
        (DONE, "nanochat train rl --run x"),
        (DONE[:2], "nanochat train mid --run x"),
        ((*DONE, "rl"), "nanochat chat x"),
    ],
)
def test_without_a_stage_all_that_is_finished_is_copied(
    nanochat: Call, home: Path, done: tuple[str, ...], next_command: str
) -> None:
    make_run(home, "r", done)
    outcome = nanochat("runs", "copy", "r", "x")
    assert outcome.code == 0 and f"run x has {', '.join(done)} of r" in outcome.err and next_command in outcome.err
    assert not (Workspace(home).run("x").root / "rl").exists() or "rl" in done
    again = nanochat("runs", "copy", "r", "x")
    assert again.code == 2 and again.err.endswith("hint:  nanochat runs copy r x-2\n")


def test_another_setting_of_a_trained_stage_names_the_copy_before_it(nanochat: Call, home: Path) -> None:
    make_run(home, "r", DONE)
    outcome = nanochat("train", "sft", "--run", "r", "--set", "sft.num_steps=3", "--set", "rl.num_steps=4")
    assert outcome.code == 2 and "has trained its sft with sft.num_steps" in outcome.err
    told = "--set sft.num_steps=3 --set rl.num_steps=4"
    assert f"nanochat runs copy r r-2 --until mid && nanochat train sft {told} --run r-2" in outcome.err


def test_packing_is_settled_by_base_and_not_by_the_tokenizer(nanochat: Call, home: Path) -> None:
    make_run(home, "new", ("tokenizer",))
    crop = ("--set", "data.packing=crop")
    assert "has trained" not in nanochat("train", "base", "--run", "new", *crop, "--dry-run").err
    make_run(home, "old", ("tokenizer", "base"))
    outcome = nanochat("train", "base", "--run", "old", *crop)
    assert outcome.code == 2 and 'has trained its base with data.packing = "cut", not "crop"' in outcome.err


def test_a_plan_without_a_checkpoint_binds_nobody(nanochat: Call, home: Path) -> None:
    run = make_run(home, "r", DONE)
    run.stage("rl").root.mkdir()
    run.stage("rl").plan.write_text("{}")
    outcome = nanochat("train", "rl", "--run", "r", "--set", "rl.num_steps=4", "--set", "rl.task=spelling", "--dry-run")
    assert "has trained its rl" not in outcome.err


@pytest.mark.parametrize("value", ["x", [1], {"a": 1}, True, float("nan")])
def test_damaged_numbers_are_left_out_and_said(nanochat: Call, home: Path, value: object) -> None:
    run = make_run(home, "r", DONE)
    run.eval.mkdir(exist_ok=True)
    for number, key in enumerate(("accuracy", "stderr", "total", "core_tasks", "pass_at")):
        (run.eval / f"sft_{number}.json").write_text(
            json.dumps({"name": "n", "stage": "sft", "accuracy": 0.5, key: value})
        )
    result = json.loads(run.stage("sft").result.read_text())
    run.stage("sft").result.write_text(json.dumps(result | {"loss": value, "step": value, "seconds": value}))
    outcome = nanochat("runs", "show", "r")
    assert outcome.code == 0, outcome.err
    assert "damaged score files are left out" in outcome.err and "nan" not in outcome.out
    json.loads(nanochat("runs", "show", "r", "--json").out)


def test_a_run_that_is_being_evaluated_is_not_removed(nanochat: Call, home: Path) -> None:
    run = make_run(home, "r", DONE)
    with hold_run(run), hold_run(run):
        outcome = nanochat("runs", "rm", "r", "-y")
        assert outcome.code == 2 and "run 'r' is being evaluated" in outcome.err and run.settings.is_file()
    assert nanochat("runs", "rm", "r", "-y").code == 0 and not run.root.exists()


def test_a_report_that_cannot_be_written_leaves_the_old_one(
    nanochat: Call, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(home, "r", DONE)
    assert nanochat("report", "r").code == 0
    before = run.report_md.read_text()

    def fail(path: Path, text: str) -> None:
        path.write_text(text[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nanochat.files.write_text", fail)
    outcome = nanochat("report", "r")
    assert outcome.code == 5 and "is full" in outcome.err and run.report_md.read_text() == before
    assert "the same command again" in outcome.err


def test_a_run_that_has_lost_its_settings_is_explained_and_can_be_removed(nanochat: Call, home: Path) -> None:
    run = make_run(home, "lost", ("tokenizer", "base"))
    run.settings.unlink()
    for words in (("resume", "lost"), ("runs", "show", "lost"), ("train", "mid", "--run", "lost")):
        outcome = nanochat(*words)
        assert outcome.code == 3 and "run 'lost' has no settings.json any more" in outcome.err
    assert f"{run.root} has lost its settings.json" in nanochat("runs", "ls").err
    assert json.loads(nanochat("runs", "rm", "lost", "-y", "--json").out) == {"removed": ["lost"]}
    assert nanochat("runs", "rm", "lost", "-y").code == 3 and not run.root.exists()


def test_a_link_to_nothing_is_a_name_that_is_taken(nanochat: Call, home: Path) -> None:
    make_run(home, "a", ("tokenizer", "base"))
    (home / "runs" / "b").symlink_to(home / "nowhere")
    outcome = nanochat("runs", "copy", "a", "b")
    assert outcome.code == 2 and "run 'b' exists already" in outcome.err and "nanochat runs copy a b-2" in outcome.err
