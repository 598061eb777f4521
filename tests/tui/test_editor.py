"""The user's own editor, in lines and on the full screen."""

import signal
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from nanochat.errors import DataError, NanochatError, UsageError
from nanochat.tui.app import ChatApp
from nanochat.tui.editor import edit_text, find_editor
from nanochat.tui.plain import run_plain
from nanochat.tui.widgets import PromptArea
from tests.tui.test_app import app_of, ask, settle, transcript


def program(folder: Path, name: str) -> None:
    (folder / name).write_text("#!/bin/sh\n")
    (folder / name).chmod(0o755)


def test_visual_is_asked_first_then_editor_then_what_is_there(tmp_path: Path) -> None:
    for name in ("vi", "mine", "other"):
        program(tmp_path, name)
    path = {"PATH": str(tmp_path)}
    assert find_editor(path | {"VISUAL": "mine --wait", "EDITOR": "other"}) == ["mine", "--wait"]
    assert find_editor(path | {"VISUAL": " ", "EDITOR": "other"}) == ["other"]
    assert find_editor(path) == ["vi"]
    program(tmp_path, "nano")
    assert find_editor(path) == ["nano"]


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        ({"EDITOR": "emcas -nw"}, "there is no program 'emcas'"),
        ({"VISUAL": "vi '"}, "cannot be read: No closing quotation"),
        ({}, "neither $VISUAL nor $EDITOR is set, and there is no nano and no vi"),
    ],
)
def test_without_an_editor_what_to_set_is_said(environ: dict[str, str], sentence: str) -> None:
    with pytest.raises(UsageError) as raised:
        find_editor(environ | {"PATH": "/nowhere"})
    assert sentence in raised.value.message and "export VISUAL=" in raised.value.hint


def python(code: str) -> list[str]:
    """An editor that runs code; `path` is the file."""
    return [sys.executable, "-c", f"import pathlib, sys; path = pathlib.Path(sys.argv[1]); {code}"]


def test_a_text_comes_back_changed_and_clean() -> None:
    code = "path.write_text(path.read_text().upper() + '\\x1b[31mé\\n\\n', encoding='utf-8')"
    assert edit_text(python(code), "one\ntwo") == "ONE\nTWOé"


@pytest.mark.parametrize(
    ("command", "kind", "sentence"),
    [
        (python("sys.exit(3)"), DataError, "ended with code 3; the text is as it was"),
        (python("path.unlink()"), DataError, "cannot be read"),
        (python("path.write_bytes(b'\\xff')"), DataError, "cannot be read"),
        (["/nowhere/editor"], UsageError, "cannot be started"),
    ],
)
def test_an_editor_that_fails_is_said(command: list[str], kind: type[NanochatError], sentence: str) -> None:
    with pytest.raises(kind, match=sentence):
        edit_text(command, "text")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_in_the_editor_is_the_editors() -> None:
    code = "import os, signal, time; os.kill(os.getppid(), signal.SIGINT); print('still here', file=path.open('w'))"
    assert edit_text(python(code), "") == "still here"
    code = "import signal; path.write_text(str(signal.getsignal(signal.SIGINT) is signal.default_int_handler))"
    assert edit_text(python(code), "") == "True"


def with_editor(edit, *scripts: list[str], can_suspend: bool = True) -> ChatApp:
    class Suspending(ChatApp):
        is_back = False

        @contextmanager
        def suspend(self):
            yield  # as Textual does, without `finally`: an exception would leave the terminal as it is
            self.is_back = True

    kind = Suspending if can_suspend else ChatApp
    return kind(app_of(*scripts).recorder, Path(), None, None, edit)


async def test_ctrl_o_edits_the_prompt() -> None:
    app = with_editor(lambda text: text.upper() + "\nmore", ["ok"])
    async with app.run_test() as pilot:
        await pilot.press("h", "i", "ctrl+o")
        await pilot.pause()
        assert app.query_one(PromptArea).text == "HI\nmore"
        await pilot.press("enter")
        await settle(app, pilot)
        assert transcript(app) == [("UserTurn", "HI\nmore"), ("answer", "ok")]
        await ask(app, pilot, "/editor a draft")
        assert app.query_one(PromptArea).text == "A DRAFT\nmore"


async def test_an_editor_that_fails_leaves_the_prompt_as_it_was() -> None:
    def fail(_text: str) -> str:
        raise UsageError("there is no [editor]", "export VISUAL=nano")

    app = with_editor(fail, ["ok"])
    async with app.run_test() as pilot:
        await pilot.press("h", "i", "ctrl+o")
        await pilot.pause()
        assert app.query_one(PromptArea).text == "hi" and app.is_back  # type: ignore[attr-defined]
        assert any("there is no [editor]" in note.message for note in app._notifications)


async def test_a_terminal_that_cannot_be_given_away_is_said() -> None:
    app = with_editor(str.upper, ["ok"], can_suspend=False)
    async with app.run_test() as pilot:
        await pilot.press("h", "i", "ctrl+o")
        await pilot.pause()
        assert app.query_one(PromptArea).text == "hi"
        assert any("cannot be given to an editor" in note.message for note in app._notifications)


def test_in_lines_what_was_written_is_sent() -> None:
    recorder = app_of(["ok"]).recorder
    lines, output, notes = ["/editor a", "/editor"], [], []

    def read(_prompt: str) -> str:
        if not lines:
            raise EOFError
        return lines.pop(0)

    run_plain(recorder, read, output.append, notes.append, None, lambda text: f"{text}\nb" if text else " ")
    assert recorder.session.history.messages[0].text == "a\nb" and len(recorder.session.history.messages) == 2
    assert "".join(output) == "ok\n\n" and notes == ["a\nb"]
