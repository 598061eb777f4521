"""Keys and theme of the settings: what is read, what is refused, and what the screen does with it."""

from pathlib import Path

import pytest
from textual.widgets import Static

from nanochat.errors import DataError, UsageError
from nanochat.tui.app import ChatApp
from nanochat.tui.keys import ACTIONS, DEFAULT_KEYS, read_key, show_key
from nanochat.tui.preferences import parse_preferences, read_preferences
from nanochat.tui.widgets import PromptArea
from tests.tui.test_app import app_of, ask, settle, transcript

FILE = Path("chat.toml")


def test_without_a_file_everything_is_as_it_was(tmp_path: Path) -> None:
    found = read_preferences(tmp_path / "chat.toml")
    assert found.keys == DEFAULT_KEYS and found.theme == "dark"
    assert parse_preferences("", FILE).keys == DEFAULT_KEYS


def test_keys_may_be_written_as_people_do() -> None:
    found = parse_preferences(
        'theme = "nord"\n[keys]\nregenerate = "Ctrl-G"\nquit = ["esc", "F10"]\nstop = "f5"\n', FILE
    )
    assert found.keys["regenerate"] == ("ctrl+g",) and found.keys["quit"] == ("escape", "f10")
    assert found.keys["edit"] == DEFAULT_KEYS["edit"] and found.theme == "nord"
    assert parse_preferences('theme = "textual-dark"', FILE).theme == "textual-dark", "/theme takes it too"


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("theme = 'lihgt'", "chat.toml:1: there is no theme 'lihgt'", "did you mean light?"),
        ("theme = 3", "chat.toml:1: there is no theme 3", "dark, light"),
        ("\ntehme = 'light'", "chat.toml:2: unknown key tehme", "did you mean theme?"),
        ("regenerate = 'f9'", "chat.toml:1: unknown key regenerate", '"[keys]": regenerate ='),
        ("[keys]\n\nregnerate = 'f9'", "chat.toml:3: unknown action regnerate", "did you mean regenerate?"),
        ("[keys]\nedit = 'ctr+e'", "chat.toml:2: keys.edit = 'ctr+e' is no key", 'edit = "ctrl+e"'),
        ("[keys]\nedit = 'pagedwn'", "is no key; did you mean pagedown?", 'edit = "ctrl+e"'),
        ("[keys]\nedit = 'e'", "chat.toml:2: keys.edit = 'e' is for typing", 'edit = "ctrl+e"'),
        ("[keys]\nedit = 'shift+e'", "is for typing", 'edit = "ctrl+e"'),
        ("[keys]\nedit = 'backspace'", "moves or deletes", 'edit = "ctrl+e"'),
        ("[keys]\nedit = 'ctrl+h'", "moves or deletes", 'edit = "ctrl+e"'),
        ("[keys]\nedit = []", "neither a key nor a list of keys", 'edit = "ctrl+e"'),
        ("[keys]\nedit = 3", "neither a key nor a list of keys", 'edit = "ctrl+e"'),
        ("[keys]\nedit = ''", "is no key", 'edit = "ctrl+e"'),
        ("[keys]\nedit = 'f1'", "chat.toml:2: F1 is the key of help already", "give help another"),
        ("[keys]\nedit = 'f9'\nnew = 'F9'", "chat.toml:3: F9 is the key of edit already", "another one for new"),
        ("[keys]\nnewline = 'ctrl+m'", "Enter is the key of send already", "another one for newline"),
        ("keys = 3", "chat.toml:1: keys is a table", "[keys]"),
        ("theme = light", "chat.toml is not TOML", "for example"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(text: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_preferences(text, FILE)
    assert message in raised.value.message and hint in raised.value.hint


def test_a_file_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    (tmp_path / "chat.toml").write_bytes(b"\xff")
    with pytest.raises(DataError, match="cannot read"):
        read_preferences(tmp_path / "chat.toml")
    with pytest.raises(DataError, match="cannot read"):
        read_preferences(tmp_path)


def test_the_keys_of_two_actions_can_be_swapped() -> None:
    found = parse_preferences("[keys]\nedit = 'ctrl+r'\nregenerate = 'ctrl+e'", FILE)
    assert (found.keys["edit"], found.keys["regenerate"]) == (("ctrl+r",), ("ctrl+e",))


def test_every_default_is_a_key_that_could_be_chosen() -> None:
    for action in ACTIONS:
        for key in action.keys:
            assert read_key(key) == key and read_key(show_key(key)) == key


def with_keys(text: str, *scripts: list[str]) -> ChatApp:
    app = app_of(*scripts)
    return ChatApp(app.recorder, Path(), None, parse_preferences(text, FILE))


async def test_other_keys_work_are_shown_and_the_old_ones_do_nothing() -> None:
    text = "[keys]\nregenerate = 'ctrl+g'\nhelp = 'f9'\nsend = 'f5'\nchats = 'ctrl+r'"
    app = with_keys(text, ["first"], ["second"])
    async with app.run_test(size=(120, 40)) as pilot:
        prompt = app.query_one(PromptArea)
        assert "F5 sends, F9 helps" in prompt.placeholder
        line = str(app.query_one("#keys", Static).render())
        assert "^G Again" in line and "F9 Help" in line and "^R Chats" in line
        await pilot.press("g", "o", "enter")
        assert prompt.text == "go\n"
        await pilot.press("f5")
        await settle(app, pilot)
        assert transcript(app) == [("UserTurn", "go"), ("answer", "first")]
        await pilot.press("ctrl+r")
        await settle(app, pilot)
        assert any("not kept" in note.message for note in app._notifications), "which is another action now"
        await pilot.press("ctrl+g")
        await settle(app, pilot)
        assert transcript(app)[-1] == ("answer", "second")
        await pilot.press("f1")
        assert len(app.screen_stack) == 1
        await pilot.press("f9")
        await pilot.pause()
        shown = " ".join(str(part.render()) for part in app.screen.query(Static))
        assert "F5 sends it" in shown and "Ctrl-G " in shown
        await pilot.press("f9")
        await pilot.pause()
        assert len(app.screen_stack) == 1


async def test_swapped_keys_do_each_others_work() -> None:
    app = with_keys("[keys]\nedit = 'ctrl+r'\nregenerate = 'ctrl+e'", ["first"], ["second"])
    async with app.run_test() as pilot:
        await ask(app, pilot, "go")
        await settle(app, pilot)
        await pilot.press("ctrl+e")
        await settle(app, pilot)
        assert transcript(app)[-1] == ("answer", "second")
        await pilot.press("ctrl+r")
        await pilot.pause()
        assert app.query_one(PromptArea).text == "go"


async def test_the_theme_is_chosen_switched_and_named() -> None:
    app = with_keys("theme = 'light'", ["x"])
    async with app.run_test() as pilot:
        assert app.theme == "textual-light"
        await pilot.press("f8")
        assert app.theme == "textual-dark"
        await ask(app, pilot, "/theme gruvbox")
        assert app.theme == "gruvbox"
        assert 'theme = "gruvbox" at the top of chat.toml' in transcript(app)[-1][1]
        await ask(app, pilot, "/theme none")
        assert app.theme == "gruvbox" and "There is no theme 'none'" in transcript(app)[-1][1]
        await ask(app, pilot, "/theme")
        assert "dark, light, nord" in transcript(app)[-1][1]
