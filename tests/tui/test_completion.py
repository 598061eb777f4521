"""Tab after a slash."""

import sys
from pathlib import Path

import pytest

from nanochat.chat.store import ChatStore
from nanochat.engine.sampling import SamplingParams
from nanochat.errors import MissingError
from nanochat.tui.app import ChatApp
from nanochat.tui.commands import COMMANDS
from nanochat.tui.completion import Completer, complete_in_readline
from nanochat.tui.remote import RemoteParams
from nanochat.tui.widgets import PromptArea
from tests.patience import PATIENCE_SECONDS
from tests.tui.test_app import app_of, ask, settle, transcript
from tests.tui.test_screens import kept_app


class TwoModels:
    """`one` is there already, `two` can be loaded, `slow` waits for the test."""

    def __init__(self, waiting=None) -> None:
        self.waiting = waiting

    def list_names(self) -> list[str]:
        return ["demo/sft@10", "two/sft@5"]

    def known_names(self) -> list[str]:
        return self.list_names()

    def open(self, name: str, session):
        if self.waiting is not None:
            self.waiting.wait(PATIENCE_SECONDS)
        if not name.startswith("two"):
            raise MissingError(f"there is no run {name!r}", "did you mean two?")
        other = app_of(["from two"]).session
        other.name, other.params, other.system = "two/sft@5", session.params, session.system
        return other


def completer(models=None, store=None) -> Completer:
    app = kept_app(store, "x") if store else app_of(["x"])
    return Completer(app.recorder, models)


def test_commands_and_their_arguments_are_completed(tmp_path: Path) -> None:
    complete = completer(TwoModels()).complete
    assert complete("/se") == ["/set "] and complete("/ne") == ["/new", "/next"]
    assert len(complete("/")) == len(COMMANDS)
    assert complete("/set top") == ["/set top_k ", "/set top_p "]
    assert complete("/set top_k ") == ["/set top_k off"] and complete("/set seed ") == []
    assert complete("/model t") == ["/model two/sft@5"]
    assert complete("/theme li") == ["/theme light"]
    for line in ("", "se", "/zzz", "/new ", "/a\nb", "text /se", "//se"):
        assert complete(line) == [], line
    assert completer().complete("/model ") == []


def test_conversations_and_a_servers_numbers_are_completed(tmp_path: Path) -> None:
    store = ChatStore(tmp_path / "chats.db")
    found = completer(store=store)
    list(found.recorder.send("ducks"))
    chat = store.list()[0].id
    assert found.complete("/open ") == ["/open latest", f"/open {chat}"]
    found.recorder.session.params = RemoteParams()
    assert found.complete("/set seed ") == ["/set seed off"]


async def test_tab_completes_goes_through_and_else_moves_on() -> None:
    app = app_of(["x"])
    async with app.run_test() as pilot:
        prompt = app.query_one(PromptArea)
        await pilot.press(*"/ed")
        await pilot.pause()
        assert prompt.border_subtitle == "/edit  /editor"
        await pilot.press("tab")
        assert prompt.text == "/edit"
        seen = []
        for _ in range(3):
            await pilot.press("tab")
            await pilot.pause()
            seen.append(prompt.text)
        assert seen == ["/edit ", "/editor ", "/edit "]
        prompt.fill("/set top_")
        await pilot.press("tab")
        await pilot.pause()
        assert prompt.text == "/set top_k " and prompt.border_subtitle == "top_k  top_p"
        prompt.clear()
        await pilot.press("x", "tab")
        await pilot.pause()
        assert prompt.text == "x" and not prompt.has_focus and prompt.border_subtitle == ""
        await pilot.press("y")
        await pilot.pause()
        assert prompt.text == "xy" and prompt.has_focus, "typing goes into the prompt"


def test_readline_asks_for_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    class Readline:
        __doc__ = "GNU"
        bound = ""

        def set_completer_delims(self, delims: str) -> None:
            assert " " not in delims

        def set_completer(self, offer) -> None:
            self.offer = offer

        def parse_and_bind(self, line: str) -> None:
            self.bound = line

    readline = Readline()
    monkeypatch.setitem(sys.modules, "readline", readline)
    complete_in_readline(completer().complete)
    assert [readline.offer("/ne", state) for state in range(3)] == ["/new", "/next", None]
    assert readline.bound == "tab: complete"
    monkeypatch.setitem(sys.modules, "readline", None)
    complete_in_readline(completer().complete)  # a Python without it


async def test_another_model_goes_on_with_the_conversation() -> None:
    app = app_of(["from one"])
    app = ChatApp(app.recorder, Path(), TwoModels())
    app.session.params = SamplingParams(temperature=0, seed=5)
    async with app.run_test() as pilot:
        for line in ("go", "/model", "/model two"):
            await ask(app, pilot, line)
            await settle(app, pilot)
        assert "* demo/sft@10\n  two/sft@5" in transcript(app)[2][1]
        assert transcript(app)[-1] == ("Note", "two/sft@5 answers from now on.")
        await ask(app, pilot, "more")
        await settle(app, pilot)
        assert transcript(app)[-1] == ("answer", "from two")
        assert [message.text for message in app.session.history.messages] == ["go", "from one", "more", "from two"]
        assert app.session.params.seed == 5


async def test_a_model_that_cannot_be_loaded_leaves_the_old_one(monkeypatch: pytest.MonkeyPatch) -> None:
    app = app_of(["one"], ["still one"])
    models = TwoModels()
    app = ChatApp(app.recorder, Path(), models)
    async with app.run_test() as pilot:
        await ask(app, pilot, "/model zzz")
        await settle(app, pilot)
        assert transcript(app)[-1][1] == "there is no run 'zzz' (did you mean two?)"
        monkeypatch.setattr(models, "open", lambda name, session: 1 / 0)
        await ask(app, pilot, "/model two")
        await settle(app, pilot)
        assert transcript(app)[-1][1].startswith("ZeroDivisionError")
        await ask(app, pilot, "go")
        await settle(app, pilot)
        assert transcript(app)[-1] == ("answer", "one") and app.session.name == "demo/sft@10"


async def test_the_screen_lives_while_a_model_is_loaded() -> None:
    import threading

    waiting = threading.Event()
    app = ChatApp(app_of(["one"]).recorder, Path(), TwoModels(waiting))
    async with app.run_test() as pilot:
        await ask(app, pilot, "/model two")
        await ask(app, pilot, "too early")
        assert app.is_answering and app.query_one(PromptArea).text == "too early"
        await pilot.press("escape", "f1")
        await pilot.pause()
        assert len(app.screen_stack) == 2
        await pilot.press("escape")
        waiting.set()
        await settle(app, pilot)
        assert app.session.name == "two/sft@5"
        said = [note.message for note in app._notifications]
        assert "Still loading." in said and any("cannot be stopped" in words for words in said)


async def test_without_a_choice_of_models_that_is_said() -> None:
    app = app_of(["x"])
    async with app.run_test() as pilot:
        await ask(app, pilot, "/model two")
        assert "there is only this model here" in transcript(app)[-1][1]
