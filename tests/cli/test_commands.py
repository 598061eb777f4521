import io
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import nanochat
from nanochat.cli.eval import are_scores_done
from nanochat.cli.options import check_utf8, read_utf8
from nanochat.config.load import list_presets, load_settings, read_saved
from nanochat.config.settings import Settings
from nanochat.errors import CapacityError, UsageError
from nanochat.launch.cluster import Cluster
from nanochat.launch.launch import ALONE, child_environ, run_child, stage_command, threads_that_sleep
from nanochat.machine import START
from tests.cli.conftest import RUN, make_run
from tests.core_bundle import write_bundle
from tests.patience import PATIENCE_SECONDS

ALL_DONE = ("tokenizer", "base", "mid", "sft", "rl")


def test_run_goes_through_all_stages_then_skips_them_all(nanochat, launched, home) -> None:
    outcome = nanochat("run", "--preset", "demo")
    assert outcome.code == 0, outcome.err
    assert [stage for stage, _ in launched.calls] == RUN
    assert outcome.out.split() == [str(home / "runs/demo/report.md"), str(home / "runs/demo/report.html")]
    assert "nanochat chat demo" in outcome.err
    again = nanochat("run", "--preset", "demo")
    assert again.code == 0 and len(launched.calls) == len(RUN)
    for stage in (*ALL_DONE, "eval of sft", "eval of rl"):
        assert any(line.startswith(f"{stage} is done") and line.endswith("skipped") for line in again.err.splitlines())


def test_run_stops_at_the_stage_that_fails_and_goes_on_from_there(nanochat, launched) -> None:
    launched.codes["mid"] = 75
    assert nanochat("run", "--preset", "demo").code == 75
    launched.codes.clear()
    assert nanochat("run", "--preset", "demo").code == 0
    assert [stage for stage, _ in launched.calls] == [*RUN[:3], "mid", *RUN[3:]]


def test_a_model_that_rl_cannot_teach_is_scored_and_reported(nanochat, launched, home) -> None:
    launched.codes["rl"] = 7
    assert nanochat("run", "--preset", "demo").code == 7
    assert [stage for stage, _ in launched.calls] == RUN[:-1]
    assert "sft" in (home / "runs/demo/report.md").read_text()
    launched.codes.clear()
    assert nanochat("run", "--preset", "demo").code == 0
    assert [options[:2] for stage, options in launched.calls if stage == "evaluate"] == [
        ("--of", "base,mid"),
        ("--of", "sft"),
        ("--of", "rl"),
    ]


def test_without_a_task_to_practise_rl_is_left_out(nanochat, launched) -> None:
    assert nanochat("run", "--preset", "demo", "--set", "rl.task=none").code == 0
    assert [stage for stage, _ in launched.calls] == RUN[:-2]


def test_train_writes_complete_settings_before_it_starts_the_worker(nanochat, launched, home) -> None:
    assert nanochat("tokenize", "train", "--preset", "demo", "--run", "x", "--set", "base.num_steps=5").code == 0
    preset, settings, origins = read_saved(home / "runs/x/settings.json")
    assert (preset, settings.base.num_steps, origins["base.num_steps"]) == ("demo", 5, "--set")
    assert (home / "runs/x/environment.json").is_file()
    assert (
        nanochat("train", "base", "--run", "x", "-q", "--json").out.strip() == '{\n  "stage": "base",\n  "step": 20\n}'
    )
    assert launched.calls[-1] == ("base", ("--quiet",))


def test_what_is_not_trained_yet_may_still_change(nanochat, launched, home) -> None:
    make_run(home, "r", ("tokenizer", "base"))
    outcome = nanochat("train", "mid", "--run", "r", "--set", "mid.num_steps=9", "--set", "batch.device_batch_size=8")
    assert outcome.code == 0, outcome.err
    assert "mid.num_steps was 600, is now 9" in outcome.err
    assert read_saved(home / "runs/r/settings.json")[1].mid.num_steps == 9


def test_run_stores_and_says_changes_before_anything_starts(nanochat, launched, home) -> None:
    make_run(home, "r", ("tokenizer", "base", "mid", "sft"), "", "rl.num_steps=40", "sft.eval_every=250")
    told = ("--set", "rl.num_steps=1", "--set", "eval.max_examples=7", "--set", "sft.eval_every=9")
    shown = nanochat("run", "--run", "r", *told, "--dry-run").err
    assert "rl.num_steps was 40, is now 1" in shown and not launched.calls
    assert read_saved(home / "runs/r/settings.json")[1].rl.num_steps == 40
    launched.codes["evaluate"] = 75  # what comes first ends
    outcome = nanochat("run", "--run", "r", *told)
    assert outcome.code == 75 and "rl.num_steps was 40, is now 1" in outcome.err
    assert "sft.eval_every was 250, is now 9; sft is done and stays as it is" in outcome.err
    saved = read_saved(home / "runs/r/settings.json")[1]
    assert (saved.rl.num_steps, saved.eval.max_examples) == (1, 7)


@pytest.mark.parametrize("words", ["train sft --run r", "tokenize train --run r", "run --run r"])
def test_changes_are_stored_where_a_stage_has_nothing_left_to_do(nanochat, launched, home, words) -> None:
    make_run(home, "r", ALL_DONE, "", "eval.max_examples=9")
    outcome = nanochat(*words.split(), "--set", "eval.max_examples=7")
    assert outcome.code == 0, outcome.err
    assert "eval.max_examples was 9, is now 7" in outcome.err
    assert read_saved(home / "runs/r/settings.json")[1].eval.max_examples == 7


@pytest.mark.parametrize(
    "words, then",
    [
        ("train base --preset demo --run r", "tokenizer && nanochat train base --preset demo"),
        ("train base --run r", "tokenizer && nanochat train base"),
        ("run --run r", "tokenizer && nanochat run"),
        ("resume r", "tokenizer && nanochat run"),
        ("eval bpb r", "tokenizer && nanochat run"),
    ],
)
def test_more_steps_of_a_finished_stage_are_commands_to_paste(nanochat, launched, home, words, then) -> None:
    make_run(home, "r", ("tokenizer", "base"), "mid")
    make_run(home, "r-2")
    outcome = nanochat(*words.split(), "--set", "base.num_steps=2000")
    assert outcome.code == 2 and "has trained its base with base.num_steps = 300, not 2000" in outcome.err
    hint = outcome.err.splitlines()[-1].removeprefix("hint:  ")
    assert hint.startswith(f"nanochat runs copy r r-3 --until {then} ")
    for command in hint.split(" && "):
        pasted = nanochat(*shlex.split(command.removeprefix("nanochat ")))
        assert pasted.code == 0, pasted.err
    assert launched.calls[0][0] == "base" and read_saved(home / "runs/r-3/settings.json")[1].base.num_steps == 2000


def test_files_of_what_is_done_are_not_asked_for_again(nanochat, launched, home) -> None:
    own = ("mid.mixture=custom:gone.jsonl", "eval.tasks=gone.py:Task")
    make_run(home, "r", ("tokenizer", "base", "mid"), "", *own)
    refused = nanochat("train", "sft", "--run", "r")
    assert refused.code == 3 and "gone.py" in refused.err and not launched.calls
    done = make_run(home, "done", ALL_DONE, "", *own)
    done.eval.mkdir()
    task = str(Path("gone.py:Task").absolute())
    for number, record in enumerate({"stage": of, "name": name} for of in ("sft", "rl") for name in ("bpb", task)):
        (done.eval / f"{number}.json").write_text(json.dumps(record | {"step": 20}))
    outcome = nanochat("run", "--run", "done")
    assert outcome.code == 0, outcome.err


def test_a_device_batch_is_lowered_unless_it_was_chosen(nanochat, launched, home, monkeypatch) -> None:
    gpus = ("--device", "cpu", "--gpus", "2")
    said = nanochat("plan", "--preset", "demo", *gpus).err
    for stage in ("base", "mid", "sft"):
        assert f"{stage}: device_batch_size = 8 instead of 16, the largest that divides a step of 4,096 tokens" in said
    assert nanochat("config", "validate", "--preset", "demo", *gpus).code == 0
    assert nanochat("run", "--preset", "demo", *gpus).code == 0
    assert read_saved(home / "runs/demo/settings.json")[1].batch.device_batch_size == 16
    Path("my.toml").write_text("[batch]\ndevice_batch_size = 16\n")
    for words in (["--set", "batch.device_batch_size=16"], ["--config", "my.toml"]):
        refused = nanochat("run", "--preset", "demo", "--run", "x", *gpus, *words)
        assert refused.code == 2 and "is not a multiple of 16 x 256 x 2" in refused.err
    monkeypatch.setenv("NANOCHAT_BATCH__DEVICE_BATCH_SIZE", "16")
    assert nanochat("config", "validate", "--preset", "demo", *gpus).code == 2


def test_resume_finds_the_interrupted_stage(nanochat, launched, home) -> None:
    make_run(home, "r", ("tokenizer", "base"), "mid")
    make_run(home, "done", ALL_DONE)
    outcome = nanochat("resume")
    assert outcome.code == 0, outcome.err
    assert "resuming mid of run r" in outcome.err
    assert [stage for stage, _ in launched.calls] == ["mid"]


def test_eval_passes_the_model_on_and_shows_its_scores(nanochat, launched, home) -> None:
    make_run(home, "r", ALL_DONE)
    outcome = nanochat("eval", "all", "r/sft", "--json")
    assert launched.calls == [("evaluate", ("--of", "sft", "--score", "all"))]
    tasks = load_settings("demo", environ={})[0].eval.tasks
    assert {score["name"] for score in json.loads(outcome.out)} == {"bpb", *tasks}


def test_scores_of_a_class_with_a_name_of_its_own_are_found_again(home) -> None:
    run = make_run(home, "r", ALL_DONE)
    run.eval.mkdir()
    for name, task in (("bpb", ""), ("backwards", "/there/own.py:Reversal")):
        record = {"stage": "sft", "step": 20, "name": name, "task": task}
        (run.eval / f"sft_{name}.json").write_text(json.dumps(record))
    for task, is_done in (("Reversal", True), ("Other", False)):
        settings = load_settings("demo", None, [f"eval.tasks=/there/own.py:{task}"], {})[0]
        assert are_scores_done(run, settings) == is_done


def test_eval_core_passes_its_options_on(nanochat, launched, home) -> None:
    make_run(home, "r", ALL_DONE)
    write_bundle(home / "core", ["copa", "piqa"])
    words = ("--max-per-task", "5", "--tasks", "copa,piqa", "--log-samples", "--resume")
    assert nanochat("eval", "core", "r/base", *words).code == 0
    stage, options = launched.calls[-1]
    assert (stage, options[:6]) == (
        "evaluate",
        ("--of", "base", "--score", "core", "--keep-finished", "--log-samples"),
    )
    assert {"eval.max_per_task=5", 'eval.core_tasks=["copa", "piqa"]'} <= set(options)
    assert "eval core r/base --log-samples --resume --set eval.max_per_task=5" in launched.again[-1]


def test_several_answers_imply_a_temperature(nanochat, launched, home) -> None:
    make_run(home, "r", ALL_DONE)
    assert nanochat("eval", "chat", "r", "--samples", "4").code == 0
    assert {"eval.answers_each=4", "eval.temperature=0.8"} <= set(launched.calls[-1][1])
    assert nanochat("eval", "chat", "r", "--samples", "4", "--temperature", "1").code == 0
    assert "eval.temperature=1.0" in launched.calls[-1][1]
    assert nanochat("eval", "chat", "r", "--samples", "1").code == 0
    assert "eval.temperature=0.8" not in launched.calls[-1][1]
    refused = nanochat("eval", "chat", "r", "--samples", "4", "--temperature", "0")
    assert refused.code == 2 and "answers_each = 4 at temperature 0 are all the same" in refused.err


def test_run_scores_core_of_the_base_model_where_the_bundle_is_at_hand(nanochat, launched, home) -> None:
    write_bundle(home / "core", ["copa"])
    assert nanochat("run", "--preset", "demo").code == 0
    scored = [options[:4] for stage, options in launched.calls if stage == "evaluate"]
    assert scored == [
        ("--of", "base", "--score", "core"),
        ("--of", "base,mid", "--score", "bpb"),
        ("--of", "sft", "--score", "bpb,chat"),
        ("--of", "rl", "--score", "bpb,chat"),
    ]
    num_calls = len(RUN) + 1
    assert nanochat("run", "--preset", "demo").code == 0 and len(launched.calls) == num_calls
    (home / "runs/demo/eval/base_core.json").unlink()
    assert nanochat("run", "--preset", "demo").code == 0
    assert [options[3] for _, options in launched.calls[num_calls:]] == ["core"]
    assert nanochat("run", "--preset", "demo", "--set", "eval.max_per_task=7").code == 0
    assert not launched.calls[num_calls + 1 :], "all questions are more than 7"
    assert nanochat("run", "--preset", "demo", "--set", "eval.core_tasks=copa").code == 0
    assert [options[3] for _, options in launched.calls[num_calls + 1 :]] == ["core"], "of other tasks it is another"


def test_a_damaged_bundle_is_found_before_anything_is_trained(nanochat, launched, home) -> None:
    write_bundle(home / "core", ["copa"])
    (home / "core" / "eval_meta_data.csv").unlink()
    outcome = nanochat("run", "--preset", "demo")
    assert outcome.code == 4 and "nanochat download core" in outcome.err and not launched.calls
    write_bundle(home / "core", ["copa"])
    outcome = nanochat("run", "--preset", "demo", "--set", "eval.core_tasks=kopa")
    assert outcome.code == 2 and "did you mean 'copa'" in outcome.err and not launched.calls


def test_plan_validate_and_run_agree_on_what_is_wrong(nanochat, launched, home) -> None:
    """Of settings, and of what is not downloaded, whose names are known without it."""
    for wish, code, said in (
        ("eval.core_tasks=kopa", 2, "there is no CORE task 'kopa'"),
        ("sft.mixture=letters:0", 2, "letters:0"),
        ("sft.mixture=custom:none.jsonl", 3, "there is no file"),
        ("sft.mixture=gsm8k", 0, "not downloaded yet: gsm8k"),
        ("eval.tasks=humaneval", 0, "not downloaded yet: humaneval"),
    ):
        for words in (("config", "validate"), ("plan",), ("run", "--dry-run")):
            outcome = nanochat(*words, "--preset", "demo", "--set", wish)
            assert outcome.code == code and said in outcome.err, (wish, words, outcome.err)
    outcome = nanochat("config", "validate", "--preset", "demo", "--set", "sft.mixture=")
    assert outcome.code == 0 and "sft: the mixture is empty, so `train base` works and `run` does not" in outcome.err
    assert not launched.calls


def test_run_without_the_bundle_says_how_to_get_it(nanochat, launched, home) -> None:
    said = nanochat("run", "--preset", "demo").err
    assert "CORE is skipped: its bundle is not downloaded. Run `nanochat download core`" in said


def test_scores_are_shown_with_their_errors_and_the_tasks_of_core(nanochat, launched, home) -> None:
    run = make_run(home, "r", ALL_DONE)
    write_bundle(home / "core", ["copa"])
    run.eval.mkdir()
    task = {"label": "copa", "accuracy": 0.6, "stderr": 0.049, "total": 100, "centred": 0.2}
    core = {"name": "centred mean", "value": 0.2, "stderr": 0.098, "missing": {"piqa": ""}, "core_tasks": [task]}
    (run.eval / "sft_core.json").write_text(json.dumps(core | {"stage": "sft", "step": 20}))
    chat = {"name": "x", "accuracy": 0.5, "stderr": 0.1, "total": 9, "answers_each": 4, "pass_at": {"1": 0.5, "4": 0.9}}
    (run.eval / "sft_x.json").write_text(json.dumps(chat | {"stage": "sft", "step": 20}))
    out = " ".join(nanochat("eval", "core", "r/sft").out.split())
    assert "sft@20 centred mean 0.2000 +- 0.0980 without piqa" in out
    assert "sft@20 copa 60.0% +- 4.9 of 100, centred 0.200" in out
    assert "sft@20 x 50.0% +- 10.0 of 9 x 4 answers sft@20 pass@1 50.0% sft@20 pass@4 90.0%" in out


def test_a_dry_run_starts_and_writes_nothing(nanochat, launched, home) -> None:
    outcome = nanochat("run", "--preset", "demo", "--dry-run")
    assert outcome.code == 0
    assert [line.split("nanochat.stages ")[1].split()[0] for line in outcome.out.splitlines()] == RUN
    assert not launched.calls and not home.exists()


@pytest.mark.parametrize("words", [["--home", "elsewhere", "runs", "ls"], ["runs", "ls", "--home", "elsewhere"]])
def test_global_options_work_before_and_after_the_subcommand(nanochat, words) -> None:
    assert str(Path("elsewhere").absolute() / "runs") in nanochat(*words).err


def test_runs_are_listed_shown_found_and_removed(nanochat, home) -> None:
    make_run(home, "a", ALL_DONE)
    make_run(home, "b", ("tokenizer",), "base")
    listed = json.loads(nanochat("runs", "ls", "--json").out)
    assert {run["run"]: run["stages"]["base"] for run in listed} == {"a": "done", "b": "at 10"}
    assert "1.2500" in nanochat("runs", "show", "a").out
    assert nanochat("runs", "path", "a/mid").out.strip() == str(home / "runs/a/mid/checkpoints/step_000020")
    assert nanochat("runs", "rm", "a", "-y").code == 0
    assert [run.name for run in (home / "runs").iterdir()] == ["b"]


def test_the_shown_configuration_is_a_file_that_means_the_same(nanochat) -> None:
    shown = nanochat("config", "show", "--preset", "demo").out
    Path("again.toml").write_text(shown)
    assert nanochat("config", "show", "--config", "again.toml").out == shown
    assert nanochat("config", "validate", "--config", "again.toml").code == 0


def test_config_show_names_the_origin_of_each_value(nanochat, monkeypatch) -> None:
    monkeypatch.setenv("NANOCHAT_MODEL__DEPTH", "6")
    shown = json.loads(nanochat("config", "show", "--preset", "demo", "--origin", "--json").out)
    assert shown["model.depth"] == {"value": 6, "origin": "NANOCHAT_MODEL__DEPTH"}
    assert shown["model.context"]["origin"] == "preset demo"


def test_config_show_names_the_variables_that_are_empty(nanochat, monkeypatch) -> None:
    monkeypatch.setenv("NANOCHAT_BASE__NUM_STEPS", "")
    monkeypatch.setenv("NANOCHAT_PORT", "tcp://10.43.1.39:8000")
    outcome = nanochat("config", "show", "--preset", "demo", "--origin", "--json")
    assert json.loads(outcome.out)["base.num_steps"] == {"value": 300, "origin": "preset demo"}
    assert "NANOCHAT_BASE__NUM_STEPS is empty: ignored" in outcome.err and "PORT" not in outcome.err


def test_the_schema_documents_every_key(nanochat) -> None:
    text = nanochat("config", "schema").out
    assert "batch.device_batch_size = 32" in text
    assert json.loads(nanochat("config", "schema", "--json").out) == Settings.model_json_schema()


def test_presets_are_valid_and_copied_as_they_are(nanochat) -> None:
    for name in list_presets():
        gpus = "1" if name in ("demo", "d12") else "8"
        assert nanochat("config", "validate", "--preset", name, "--gpus", gpus).code == 0
        assert nanochat("presets", "copy", name).code == 0
        assert Path(f"{name}.toml").read_text() == list_presets()[name]


def test_your_own_text_becomes_a_data_set(nanochat, home) -> None:
    Path("texts").mkdir()
    for index in range(4):
        Path(f"texts/{index}.txt").write_text(f"text number {index}")
    outcome = nanochat("download", "import", "texts", "--name", "mine", "--json")
    facts = json.loads(outcome.out)
    assert (facts["train_documents"], facts["val_documents"]) == (3, 1)
    assert json.loads(nanochat("download", "data", "--dataset", "mine", "--json").out)["hash"] == facts["hash"]


def test_the_worker_is_python_alone_or_under_torchrun() -> None:
    path = Path("/h/runs/r/settings.json")
    assert stage_command("base", path, ALONE, ["--quiet"]) == [
        *(sys.executable, START, "nanochat.stages", "base", "/h/runs/r/settings.json", "--quiet")
    ]
    worker = (START, "nanochat.stages", "base", "/h/runs/r/settings.json")
    assert stage_command("base", path, Cluster(gpus=8, max_restarts=3)) == [
        *(sys.executable, START, "torch.distributed.run", "--standalone", "--nproc-per-node=8", "--max-restarts=3"),
        *worker,
    ]
    assert stage_command("base", path, Cluster(8, 2, 1, "node0:29500"), local_address="10.0.0.2") == [
        *(sys.executable, START, "torch.distributed.run", "--nnodes=2", "--node-rank=1", "--rdzv-backend=c10d"),
        *("--rdzv-endpoint=node0:29500", "--rdzv-id=r-base", "--rdzv-conf=is_host=0", "--local-addr=10.0.0.2"),
        *("--nproc-per-node=8", "--max-restarts=0", *worker),
    ]


def test_the_child_is_offline_where_the_parent_is() -> None:
    environ = child_environ({"HOME": "/x"}, offline=True, color=False)
    assert environ["HF_HUB_OFFLINE"] == environ["NANOCHAT_OFFLINE"] == environ["NO_COLOR"] == "1"
    assert environ["HOME"] == "/x"


def test_threads_of_a_chat_sleep_as_soon_as_those_of_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    with threads_that_sleep():
        assert os.environ["GOMP_SPINCOUNT"] == child_environ({})["GOMP_SPINCOUNT"]
    assert "GOMP_SPINCOUNT" not in os.environ  # no child of ours inherits it unasked
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    with threads_that_sleep():
        assert os.environ["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    with threads_that_sleep():
        assert "GOMP_SPINCOUNT" not in os.environ


@pytest.mark.parametrize("code, expected", [(0, 0), (75, 75), (-signal.SIGINT, 130), (-signal.SIGTERM, 143)])
def test_the_exit_code_of_the_worker_is_ours(code: int, expected: int) -> None:
    action = (
        f"sys.exit({code})" if code >= 0 else f"signal.signal({-code}, signal.SIG_DFL); os.kill(os.getpid(), {-code})"
    )
    assert run_child([sys.executable, "-c", f"import os, signal, sys; {action}"]) == expected


def test_a_worker_that_the_system_killed_ran_out_of_memory() -> None:
    with pytest.raises(CapacityError, match="memory"):
        run_child([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])


HEAVY = ("torch", "numpy", "textual", "transformers", "pyarrow")


@pytest.mark.parametrize(
    "words",
    [["--help"], ["train", "base", "--help"], ["plan", "--preset", "d20"], ["presets", "ls"], ["config", "schema"]],
)
def test_commands_without_a_model_load_nothing_heavy(words: list[str]) -> None:
    program = (
        f"import sys; from nanochat.cli.main import main; code = main({words!r})\n"
        f"assert code == 0 and not (loaded := [name for name in {HEAVY!r} if name in sys.modules]), loaded"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_command_has_an_example(nanochat) -> None:
    for words in (
        "run",
        "resume",
        "chat",
        "report",
        "plan",
        "doctor",
        "train base",
        "eval bpb",
        "tokenize encode",
        "runs ls",
        "export hf",
    ):
        outcome = nanochat(*words.split(), "--help")
        assert outcome.code == 0 and f"Example: nanochat {words}" in outcome.out


def test_a_bug_keeps_its_traceback(nanochat, monkeypatch) -> None:
    monkeypatch.setattr("nanochat.config.plan.plan_base", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        nanochat("plan", "--preset", "demo")


@pytest.mark.parametrize("error, code", [(KeyboardInterrupt(), 130), (MemoryError(), 5), (OSError(28, "full"), 5)])
def test_what_the_machine_does_to_us_has_a_code(nanochat, monkeypatch, error, code) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("nanochat.config.plan.plan_base", fail)
    outcome = nanochat("plan", "--preset", "demo")
    assert outcome.code == code and outcome.err.startswith("error: ")


def test_what_eval_is_told_holds_for_this_call_only(nanochat, launched, home) -> None:
    run = make_run(home, "demo", ALL_DONE)
    before = run.settings.read_bytes()
    told = ("--set", "eval.max_examples=3", "--set", "eval.tasks=identity", "--set", "base.eval_tokens=4096")
    assert nanochat("eval", "all", "demo", *told).code == 0
    options = launched.calls[-1][1]
    assert {'eval.tasks=["identity"]', "eval.max_examples=3", "base.eval_tokens=4096"} <= set(options)
    assert run.settings.read_bytes() == before
    assert nanochat("eval", "bpb", "demo", "--set", "data.packing=crop", "--set", "runtime.seed=7").code == 0
    assert {'data.packing="crop"', "runtime.seed=7"} <= set(launched.calls[-1][1])
    assert run.settings.read_bytes() == before
    assert "has trained" in nanochat("eval", "bpb", "demo", "--set", "model.depth=9").err


def test_hints_about_other_settings_work_when_pasted(nanochat, home) -> None:
    make_run(home, "demo", ("tokenizer",), "base")
    refused = nanochat("resume", "demo", "--set", "model.depth=2")
    hint = refused.err.splitlines()[-1].removeprefix("hint:  nanochat ")
    assert refused.code == 2
    assert hint == "runs copy demo demo-2 --until tokenizer && nanochat run --run demo-2 --set model.depth=2"
    plan = nanochat("plan", "--preset", "demo", "--run", "mine", "--set", "base.num_steps=7")
    assert "next:  nanochat run --preset demo --run mine --set base.num_steps=7" in plan.err


def test_a_closed_standard_output_is_no_bug(home) -> None:
    code = "import sys; from nanochat.cli.main import main; sys.exit(main(['config', 'show', '--json']))"
    command = [sys.executable, "-c", code]
    script = shlex.join(command) + " >&-"
    ended = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_bytes_that_are_no_text_are_refused() -> None:
    assert check_utf8("na\u00efve") == "na\u00efve"
    with pytest.raises(UsageError, match="byte 0xff at 1"):
        check_utf8(b"a\xff".decode("utf-8", "surrogateescape"))
    for errors in ("strict", "surrogateescape"):  # what Python's standard input does depends on the locale
        with pytest.raises(UsageError, match="byte 0xff at 1"):
            read_utf8(io.TextIOWrapper(io.BytesIO(b"a\xff\n"), "utf-8", errors).readline)


def test_a_copied_preset_is_named_as_json(nanochat, home) -> None:
    assert json.loads(nanochat("presets", "copy", "demo", "mine.toml", "--json").out)["file"] == "mine.toml"


def test_python_m_is_the_same_program() -> None:
    result = subprocess.run([sys.executable, "-m", "nanochat", "--version"], capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout == f"nanochat {nanochat.__version__}\n"
