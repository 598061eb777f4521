"""A wandb that is none: it writes what it is given to a file, or fails where $FAKE_FAILS says."""

import json
from pathlib import Path

import pytest

SOURCE = """
import json, os, sys, time

def act(place, **facts):
    with open(os.environ["FAKE_RECORD"], "a") as file:
        file.write(json.dumps({"place": place, "pid": os.getpid(), **facts}) + "\\n")
    how = os.environ.get("FAKE_FAILS", "")
    if how == f"{place} raises":
        raise ConnectionError(f"{place} has no network")
    if how == f"{place} hangs":
        time.sleep(600)
    if how == f"{place} crashes":
        os.kill(os.getpid(), 11)

class Settings:
    def __init__(self, **values): pass

class Run:
    starting_step = int(os.environ.get("FAKE_STARTING_STEP", "0"))
    def log(self, values, step): act("log", step=step, values=values)
    def finish(self): act("finish")

def init(**values):
    act("init", mode=os.environ.get("WANDB_MODE"), **{k: values[k] for k in ("id", "name", "dir", "resume", "config")})
    return Run()

act("import")
"""


class FakeWandb:
    """What a fake package has been told."""

    def __init__(self, record: Path) -> None:
        self.record = record

    def calls(self, place: str) -> list[dict]:
        if not self.record.exists():
            return []
        calls = [json.loads(line) for line in self.record.read_text().splitlines()]
        return [call for call in calls if call["place"] == place]

    def logged(self) -> list[tuple[int, dict]]:
        return [(call["step"], call["values"]) for call in self.calls("log")]


def install_fake_wandb(folder: Path, monkeypatch: pytest.MonkeyPatch, fails: str = "") -> FakeWandb:
    """Put the fake before everything on the path of child processes. fails: such as "log raises", "init hangs"."""
    package = folder / "site" / "wandb"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(SOURCE)
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    monkeypatch.setenv("FAKE_RECORD", str(folder / "record.jsonl"))
    monkeypatch.setenv("FAKE_FAILS", fails)
    return FakeWandb(folder / "record.jsonl")
