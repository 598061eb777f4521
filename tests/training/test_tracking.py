import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType

import pytest

from nanochat.paths import StagePaths
from nanochat.training.metrics import MetricsFile
from nanochat.training.trackers import Identity, TensorBoardTracker, TrackioTracker, describe_stage, follow
from nanochat.training.tracking import start_tracking, tracker_environ
from tests.patience import PATIENCE_SECONDS, wait_until
from tests.trackers import install_fake_wandb

IDENTITY = Identity("demo", "base", "demo-base-1", {"model": {"depth": 2}})


@pytest.fixture
def stage(tmp_path: Path) -> StagePaths:
    paths = StagePaths(tmp_path / "demo" / "base")
    paths.root.mkdir(parents=True)
    (tmp_path / "demo" / "settings.json").write_text('{"settings": {"model": {"depth": 2}}}')
    return paths


def is_gone(pid: int) -> bool:
    try:
        return " Z " in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_a_growing_file_is_followed_and_a_half_line_waits_for_its_end(tmp_path: Path) -> None:
    path, ended = tmp_path / "metrics.jsonl", threading.Event()
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    records = follow(path, ended, poll_seconds=0.01)
    assert next(records) == {"step": 1, "loss": 2.0}
    with path.open("a") as file:
        file.write('ss": 1.5}\nnot json\n{"no": "step"}\n{"step": 3}\n')
    assert next(records)["loss"] == 1.5
    ended.set()
    assert list(records) == [{"step": 3}]


def test_what_is_logged_arrives_and_a_resume_goes_on_in_the_same_run(
    stage: StagePaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, said, metrics = install_fake_wandb(tmp_path, monkeypatch), [], MetricsFile(stage.metrics)
    tracking = start_tracking("wandb", stage, said.append)
    metrics.append({"step": 1, "loss": 2.0, "mfu": None})
    wait_until(lambda: fake.logged())  # while training runs, not at its end
    metrics.append({"step": 2, "loss": float("nan"), "lr": 0.5})
    metrics.append({"step": 2, "val_bpb": 1.25})
    tracking.close(said.append)
    assert fake.logged() == [(1, {"loss": 2.0}), (2, {"lr": 0.5}), (2, {"val_bpb": 1.25})]
    assert len(fake.calls("finish")) == 1
    metrics.truncate(1)
    monkeypatch.setenv("FAKE_STARTING_STEP", "3")  # what wandb says of a run that already has the steps up to 2
    tracking = start_tracking("wandb", stage, said.append)
    metrics.append({"step": 2, "loss": 1.5})
    metrics.append({"step": 3, "loss": 1.0})
    tracking.close(said.append)
    assert fake.logged()[3:] == [(3, {"loss": 1.0})]
    first, second = fake.calls("init")
    assert first["id"] == second["id"] and first["resume"] == "allow" and first["name"] == "demo/base"
    assert first["config"] == {"model": {"depth": 2}} and first["dir"] == str(stage.root)
    assert len(said) == 2 and "failed" not in " ".join(said)


@pytest.mark.parametrize("fails", ["import raises", "init raises", "log raises", "log crashes"])
def test_a_tracker_that_fails_is_said_once(
    stage: StagePaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    install_fake_wandb(tmp_path, monkeypatch, fails)
    said: list[str] = []
    MetricsFile(stage.metrics).append({"step": 1, "loss": 2.0})
    tracking = start_tracking("wandb", stage, said.append)
    wait_until(lambda: tracking.check(said.append) or len(said) > 1)
    tracking.check(said.append)
    tracking.close(said.append)
    assert len(said) == 2 and said[1].startswith("tracking with wandb stopped")
    assert "crashes" in fails or "has no network" in said[1]


def test_a_failure_at_the_end_is_said_too(stage: StagePaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_fake_wandb(tmp_path, monkeypatch, "finish raises")
    said: list[str] = []
    start_tracking("wandb", stage, said.append).close(said.append)
    assert "tracking with wandb failed: ConnectionError: finish has no network" in said[-1]


@pytest.mark.parametrize("place", ["import", "init", "log", "finish"])
def test_a_tracker_that_hangs_is_ended(
    stage: StagePaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    fake = install_fake_wandb(tmp_path, monkeypatch, f"{place} hangs")
    said: list[str] = []
    MetricsFile(stage.metrics).append({"step": 1, "loss": 2.0})
    tracking = start_tracking("wandb", stage, said.append)
    wait_until(lambda: fake.calls("log" if place == "finish" else place))
    tracking.check(said.append)
    assert len(said) == 1  # a hang is no news while training runs
    tracking.close(said.append, seconds=0.3)
    assert "did not finish" in said[1] and is_gone(fake.calls("import")[0]["pid"])


def test_a_process_that_cannot_start_is_said(stage: StagePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object, **_options: object) -> None:
        raise BlockingIOError(11, "no more processes")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    said: list[str] = []
    tracking = start_tracking("wandb", stage, said.append)
    tracking.check(said.append)
    tracking.close(said.append)
    assert len(said) == 1 and "no more processes" in said[0]


def test_a_trainer_that_is_killed_leaves_a_whole_copy_and_no_process(
    stage: StagePaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = install_fake_wandb(tmp_path, monkeypatch)
    MetricsFile(stage.metrics).append({"step": 1, "loss": 2.0})
    code = (
        "import os, sys; from pathlib import Path; from nanochat.paths import StagePaths\n"
        "from nanochat.training.tracking import start_tracking\n"
        "tracking = start_tracking('wandb', StagePaths(Path(sys.argv[1])), print)\n"
        "os.kill(os.getpid(), 9)"
    )
    root = str(Path(__file__).parents[2])
    environ = os.environ | {"PYTHONPATH": os.pathsep.join([os.environ["PYTHONPATH"], root])}
    assert (
        subprocess.run([sys.executable, "-c", code, str(stage.root)], env=environ, timeout=PATIENCE_SECONDS).returncode
        == -9
    )
    wait_until(lambda: fake.calls("finish") and is_gone(fake.calls("finish")[0]["pid"]))
    assert fake.logged() == [(1, {"loss": 2.0})]


def test_two_copies_do_not_write_at_once(stage: StagePaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake, said = install_fake_wandb(tmp_path, monkeypatch, "finish hangs"), []
    MetricsFile(stage.metrics).append({"step": 1, "loss": 2.0})
    first = start_tracking("wandb", stage, said.append)  # as a trainer that was killed leaves it behind
    wait_until(lambda: fake.logged())
    second = start_tracking("wandb", stage, said.append)
    second.close(said.append, seconds=1.0)
    assert len(fake.calls("import")) == 1 and "did not finish" in said[-1]
    first.close(said.append, seconds=0.2)
    monkeypatch.setenv("FAKE_FAILS", "")
    start_tracking("wandb", stage, said.append).close(said.append)
    assert len(fake.calls("import")) == 2 and fake.logged() == [(1, {"loss": 2.0})] * 2


def test_everything_is_written_under_the_run_and_offline_stays_offline(tmp_path: Path) -> None:
    stage = tmp_path / "run" / "base"
    environ = tracker_environ({"HOME": "/h", "TRACKIO_SPACE_ID": "me/space"}, stage)
    folders = {name: value for name, value in environ.items() if name.endswith("_DIR")}
    assert {"WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "TRACKIO_DIR"} <= set(folders)
    assert all(Path(value).is_relative_to(stage.parent) for value in folders.values())
    assert "TRACKIO_SPACE_ID" not in environ and "WANDB_MODE" not in environ and environ["HOME"] == "/h"
    assert tracker_environ({"NANOCHAT_OFFLINE": "1", "WANDB_MODE": "online"}, stage)["WANDB_MODE"] == "offline"
    assert tracker_environ({"WANDB_DIR": "/mine"}, stage)["WANDB_DIR"] == "/mine"


def test_an_id_stays_with_its_folder_and_is_shared_with_no_other(tmp_path: Path) -> None:
    folders = [tmp_path / name / "demo" / "base" for name in ("a", "b")]
    for folder in folders:
        folder.mkdir(parents=True)
    ids = [describe_stage(folder).id for folder in folders]
    assert ids == [describe_stage(folder).id for folder in folders]
    assert len(set(ids)) == 2 and all(name.startswith("demo-base-") for name in ids)


def test_tensorboard_files_are_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Writer:
        def __init__(self, folder: str, **options: object) -> None:
            self.events = Path(folder) / "events.out.tfevents.2"
            self.events.parent.mkdir(exist_ok=True)
            self.lines: list[tuple] = [("options", options)]

        def add_text(self, tag: str, text: str, step: int) -> None:
            assert '"depth": 2' in text

        def add_scalar(self, name: str, value: float, step: int) -> None:
            self.lines.append((name, value, step))

        def close(self) -> None:
            self.events.write_text(json.dumps(self.lines))

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / "events.out.tfevents.1").write_text("of the start before")
    tracker = TensorBoardTracker(tmp_path, IDENTITY)
    tracker.log(3, {"loss": 2.0, "lr": 1.0})
    tracker.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    options, *scalars = json.loads(events.read_text())
    assert options[1]["purge_step"] == 0 and scalars == [["loss", 2.0, 3], ["lr", 1.0, 3]]


@pytest.mark.parametrize("earlier", [None, [], ["base"], ["mid", "base"]])
def test_a_trackio_run_is_made_anew(monkeypatch: pytest.MonkeyPatch, earlier: list[str] | None) -> None:
    deleted, logged = [], []

    class Run:
        def __init__(self, name: str) -> None:
            self.name = name

        def delete(self) -> None:
            deleted.append(self.name)

        def log(self, values: dict, step: int) -> None:
            logged.append((step, values))

    class Api:
        def runs(self, project: str) -> list[Run]:
            if earlier is None:
                raise ValueError(f"Project '{project}' does not exist")
            return [Run(name) for name in earlier]

    module = ModuleType("trackio")
    module.Api = Api  # type: ignore[attr-defined]
    module.init = lambda project, name, config, embed: Run(name)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "trackio", module)
    TrackioTracker(Path(), IDENTITY).log(3, {"loss": 2.0})
    assert deleted == [name for name in earlier or [] if name == "base"] and logged == [(3, {"loss": 2.0})]
