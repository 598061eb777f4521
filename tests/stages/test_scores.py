"""A score belongs to its settings and its model: a quick evaluation never takes the place of a fuller one."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nanochat.cli.eval import are_scores_done, is_core_done, list_scores
from nanochat.config.load import load_settings, save_settings
from nanochat.config.settings import Settings
from nanochat.errors import UsageError
from nanochat.paths import RunPaths, Workspace
from nanochat.report.collect import collect_report
from nanochat.runtime import World
from nanochat.stages.__main__ import main
from nanochat.stages.scores import IDENTITY, find_score, save_score
from nanochat.tasks.catalog import find_missing

ABOUT = {"stage": "sft", "step": 20, "seed": 42, "dtype": "float32", "model_sha256": "a"}


class FakeJob:
    world = World()

    def __init__(self, home: Path) -> None:
        self.run = Workspace(home).run("r")
        self.path = self.run.eval / "sft_letters.json"
        for step in (10, 20):
            self.run.stage("sft").checkpoint(step).mkdir(parents=True)
        self.run.stage("sft").result.write_text(json.dumps({"stage": "sft", "step": 20}))

    def save(self, total: int, name: str = "letters", **more: Any) -> None:
        wish = {"max_examples": total, "temperature": more.pop("temperature", 0.0)}
        record = {"name": name, "accuracy": total / 1000, "total": total, "settings": wish, **ABOUT, **more}
        save_score(self, self.run.eval / f"sft_{name}.json", record, wish)  # type: ignore[arg-type]

    def kept(self) -> list[tuple[int, bool]]:
        """The extents of all scores, and whether each counts, that of the file without a suffix first."""
        return [(score["total"], score.get("counts", True)) for score in list_scores(self.run)]


@pytest.fixture
def job(tmp_path: Path) -> FakeJob:
    return FakeJob(tmp_path)


def test_a_quick_evaluation_stands_beside_the_fuller_one(job: FakeJob) -> None:
    job.save(300)
    job.save(5)
    assert job.kept() == [(300, True), (5, False)]
    job.save(5)
    assert job.kept() == [(300, True), (5, False)]
    job.save(1000)
    assert job.kept()[0] == (1000, True) and sorted(job.kept()[1:]) == [(5, False), (300, False)]
    assert [score.total for score in collect_report(job.run).scores] == [1000]


def test_other_settings_on_as_much_count_and_lose_nothing(job: FakeJob) -> None:
    job.save(300)
    job.save(300, temperature=1.0)
    found = [(score["settings"]["temperature"], score.get("counts", True)) for score in list_scores(job.run)]
    assert found == [(1.0, True), (0.0, False)]
    job.save(300)  # the same measure again leaves no second file of it
    found = [(score["settings"]["temperature"], score.get("counts", True)) for score in list_scores(job.run)]
    assert found == [(0.0, True), (1.0, False)]


def test_a_score_that_is_sampled_as_the_run_says_counts(job: FakeJob) -> None:
    save_settings(job.run.settings, "demo", load_settings("demo")[0], {}, "1")
    job.save(300)
    job.save(400, temperature=0.5)
    assert job.kept() == [(300, True), (400, False)]
    job.save(400)
    assert job.kept()[0] == (400, True) and len(job.kept()) == 3


def test_the_newest_model_counts_and_one_that_is_gone_does_not(job: FakeJob) -> None:
    job.save(300)
    job.save(1000, step=10)
    assert job.kept() == [(300, True), (1000, False)]
    job.save(5, model_sha256="b")  # trained again: the old one's score says nothing of it
    assert job.kept()[0] == (5, True)
    job.run.stage("sft").checkpoint(20).rename(job.run.root / "gone")
    job.save(2, step=10)
    assert job.kept()[0] == (2, True)


def test_what_older_versions_wrote_is_kept_if_it_is_fuller_and_replaced_if_not(job: FakeJob) -> None:
    job.run.eval.mkdir()
    job.path.write_text(json.dumps({"name": "letters", "accuracy": 0.5, "total": 300, "stage": "sft", "step": 20}))
    job.save(5)
    assert job.kept() == [(300, True), (5, False)]
    job.save(300)
    assert job.kept()[0] == (300, True) and len(job.kept()) == 2
    job.path.write_text("{")
    job.save(7)
    assert job.kept()[0] == (7, True)


def test_an_interrupted_evaluation_finds_what_stands_beside(job: FakeJob) -> None:
    job.save(300, identity="full")
    job.save(5, identity="quick")
    assert IDENTITY == "identity"
    for identity in ("full", "quick"):
        found = find_score(job, job.path, identity)  # type: ignore[arg-type]
        assert found is not None and found["identity"] == identity
    assert find_score(job, job.path, "other") is None  # type: ignore[arg-type]


def wish(*overrides: str) -> Settings:
    return load_settings("demo", None, ["eval.tasks=letters", *overrides], {})[0]


def test_evaluation_is_done_if_it_is_as_full_as_wished(job: FakeJob) -> None:
    job.save(20_000, name="bpb")
    job.save(5)
    assert not are_scores_done(job.run, wish("eval.max_examples=300"))
    assert are_scores_done(job.run, wish("eval.max_examples=5"))
    job.save(300)
    assert are_scores_done(job.run, wish("eval.max_examples=300")) and are_scores_done(
        job.run, wish("eval.max_examples=7")
    )
    assert not are_scores_done(job.run, wish("eval.max_examples=1000"))
    assert not are_scores_done(job.run, wish("eval.max_examples=300", "eval.answers_each=1", "eval.temperature=0.5"))
    job.run.stage("sft").result.write_text(json.dumps({"stage": "sft", "step": 30}))
    assert not are_scores_done(job.run, wish("eval.max_examples=5"))


def test_the_mean_belongs_to_its_list_of_tasks(job: FakeJob) -> None:
    job.save(1, name="bpb")
    for name in ("letters", "arithmetic"):
        job.save(300, name=name)

    def save_mean(*tasks: str) -> None:
        record = {"name": "ChatCORE", "value": 0.5, "tasks": list(tasks), "num_questions": 300 * len(tasks), **ABOUT}
        save_score(job, job.run.eval / "sft_chatcore.json", record, {"tasks": list(tasks)})  # type: ignore[arg-type]

    both = wish("eval.tasks=letters,arithmetic", "eval.max_examples=300")
    save_mean("letters")
    assert not are_scores_done(job.run, both)  # the mean of all is still to come
    save_mean("letters", "arithmetic")
    save_mean("letters")
    assert json.loads((job.run.eval / "sft_chatcore.json").read_text())["tasks"] == ["letters", "arithmetic"]
    assert are_scores_done(job.run, both)
    means = [score.name for score in collect_report(job.run).scores if "CORE" in score.name]
    assert means == ["ChatCORE of letters, arithmetic"]


def test_core_of_all_questions_is_done_for_a_wish_for_some(job: FakeJob) -> None:
    job.run.stage("base").root.mkdir()
    job.run.stage("base").result.write_text(json.dumps({"step": 20}))
    task = {"label": "copa", "accuracy": 0.5, "stderr": 0.1, "total": 100, "centred": 0.0}
    for limit in (None, 5):
        settings = {"core_tasks": ["copa"], "max_per_task": limit}
        core = [task | {"total": limit or 100}]
        record = {"name": "CORE", "value": 0.1, "core_tasks": core, "settings": settings, **ABOUT, "stage": "base"}
        save_score(job, job.run.eval / "base_core.json", record, settings)  # type: ignore[arg-type]
    assert json.loads((job.run.eval / "base_core.json").read_text())["settings"]["max_per_task"] is None
    assert is_core_done(job.run, ["copa"], 7) and is_core_done(job.run, ["copa"], None)
    assert not is_core_done(job.run, ["piqa"], 7)


def test_a_quick_look_at_a_trained_model_leaves_its_scores(start_run: Callable[..., Path]) -> None:
    settings = start_run(stages=("base", "mid", "sft"))
    run = RunPaths(settings.parent)
    full = ["evaluate", str(settings), "--score", "bpb,chat"]
    assert main(full) == 0
    before = {path.name: path.read_text() for path in run.eval.iterdir()}
    quick = ["--set", "eval.tasks=letters", "--set", "eval.max_examples=1", "--set", "base.eval_tokens=500"]
    assert main([*full, *quick]) == 0
    after = {path.name: path.read_text() for path in run.eval.iterdir()}
    assert before.items() <= after.items()
    beside = {name: json.loads(text) for name, text in after.items() if name not in before}
    assert {score["name"] for score in beside.values()} == {"letters", "ChatCORE", "bpb"}
    assert not any(score["counts"] for score in beside.values())


OWN = """
from nanochat.conversation import Conversation, assistant, user
from nanochat.tasks.task import Task

class Own(Task):
    name, eval_type = "own", "generative"

    def __init__(self, split):
        pass

    def num_examples(self):
        return 2

    def example(self, index):
        return Conversation((user(str(index)), assistant("yes")))

    def evaluate(self, conversation, completion):
        return False
"""


def test_a_score_belongs_to_the_code_that_graded_it(
    start_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "own.py"
    file.write_text(OWN)
    settings = start_run(stages=("base", "mid", "sft"), changes={"eval": {"tasks": [f"{file}:Own"]}})
    words = ["evaluate", str(settings), "--of", "sft", "--score", "chat", "--keep-finished"]
    for verdict, is_known in (("False", False), ("False", True), ("True", False)):
        file.write_text(OWN.replace("return False", f"return {verdict}"))
        sys.modules.pop("nanochat_custom_" + re.sub(r"\W", "_", str(file)), None)  # as in another process
        assert main(words) == 0
        assert ("as measured before" in capsys.readouterr().err) == is_known
        score = json.loads((settings.parent / "eval" / "sft_own.json").read_text())
        assert score["accuracy"] == float(verdict == "True")
    (tmp_path / "other.py").write_text(OWN)
    tasks = [f"{file}:Own", f"{tmp_path / 'other.py'}:Own"]
    settings = start_run("both", stages=("base", "mid", "sft"), changes={"eval": {"tasks": tasks}})
    assert main(["evaluate", str(settings), *words[2:]]) == 2
    assert "are both named 'own': their scores would be one file" in capsys.readouterr().err
    with pytest.raises(UsageError, match="are both named 'own'"):
        find_missing((), tasks)
