import asyncio
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from textual import events
from textual.containers import VerticalScroll
from textual.widgets import Static

from nanochat.chat.recorder import Recorder
from nanochat.chat.session import ChatSession
from nanochat.conversation import parse_conversation
from nanochat.engine.sampling import SamplingParams
from nanochat.tui.app import ChatApp
from nanochat.tui.client import Server
from nanochat.tui.remote import RemoteModels, RemoteSession
from nanochat.tui.widgets import AnswerText, PromptArea, ToolCall, UserTurn
from tests.engine.fakes import ByteTokenizer, ScriptedModel
from tests.patience import PATIENCE_SECONDS
from tests.tui.servers import DONE, Reply, delta, error, foreign, text

CALL = ["Let me see: ", "<|python_start|>", "2+2", "<|python_end|>", " It is **4**."]


def app_of(*scripts: list[str], folder: Path = Path(), context: int = 512, pause_after: int | None = None) -> ChatApp:
    model = ScriptedModel(*scripts, context=context, pause_after=pause_after)
    params = SamplingParams(temperature=0, max_new_tokens=200)
    return ChatApp(Recorder(ChatSession(model, ByteTokenizer(), name="demo/sft@10", params=params), None), folder)


async def wait_for(pilot, is_true: Callable[[], object]) -> None:
    """Let the application go on until it is true."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not is_true():
        assert time.monotonic() < end, "it never happened"
        await pilot.pause(0.01)


async def settle(app: ChatApp, pilot) -> None:
    """Wait until the answer is on the screen."""
    await wait_for(pilot, lambda: not app.is_answering)
    await pilot.pause()


async def ask(app: ChatApp, pilot, text: str) -> None:
    app.query_one(PromptArea).insert(text)
    await pilot.press("enter")
    await pilot.pause()


def transcript(app: ChatApp) -> list[tuple[str, str]]:
    shown = []
    for widget in app.query_one("#transcript", VerticalScroll).children:
        if isinstance(widget, AnswerText):
            shown.append(("answer", widget.source))
        elif isinstance(widget, ToolCall):
            result = "" if widget.result is None else f" = {widget.result}"
            shown.append(("ToolCall", widget.expression + result))
        elif isinstance(widget, Static):
            shown.append((type(widget).__name__, str(widget.render())))
    return shown


def status(app: ChatApp) -> str:
    return str(app.query_one("#status", Static).render())


async def test_a_question_is_answered_with_the_tool_call_shown() -> None:
    app = app_of(CALL)
    async with app.run_test() as pilot:
        await ask(app, pilot, "What is 2+2?")
        await settle(app, pilot)
        assert transcript(app) == [
            ("UserTurn", "What is 2+2?"),
            ("answer", "Let me see: "),
            ("ToolCall", "2+2 = 4"),
            ("answer", " It is **4**."),
        ]
        assert status(app).startswith("demo/sft@10   ")
        assert f"{app.session.context_used} / 512 tokens" in status(app)
        assert "tok/s" in status(app)
        assert app.query_one(PromptArea).text == ""


async def test_escape_stops_the_answer_and_keeps_its_beginning() -> None:
    app = app_of(["abcdef"], ["second"], pause_after=3)
    async with app.run_test() as pilot:
        await ask(app, pilot, "go")
        model = app.session._engine.model
        await asyncio.to_thread(model.paused.wait, PATIENCE_SECONDS)
        await ask(app, pilot, "too early")
        await pilot.press("escape")
        model.resume.set()
        await settle(app, pilot)
        assert transcript(app) == [("UserTurn", "go"), ("answer", "abcd"), ("Note", "Stopped.")]
        assert app.query_one(PromptArea).text == "too early"
        await pilot.press("enter")
        await settle(app, pilot)
        assert transcript(app)[-1] == ("answer", "second")


async def type_at_once(app: ChatApp, pilot, keys: str, prompt: str, last: tuple[str, str]) -> None:
    """All keys before any of them is looked at, as a terminal hands them over; wait for what must become of them."""
    for key in keys:
        app.post_message(events.Key("enter", None) if key == "\n" else events.Key(key, key))
    for _ in range(2000):
        await pilot.pause(0.01)
        if app.query_one(PromptArea).text == prompt and transcript(app)[-1:] == [last] and not app.is_answering:
            return
    assert (app.query_one(PromptArea).text, transcript(app)[-1:]) == (prompt, [last])


async def test_what_is_typed_behind_enter_belongs_to_the_next_question() -> None:
    app = app_of(["first"], ["second"])
    async with app.run_test() as pilot:
        await type_at_once(app, pilot, "one\ntwo", "two", ("answer", "first"))
        # The second Enter comes while the answer is on its way.
        await type_at_once(app, pilot, "!\nthree\nfour", "three\nfour", ("answer", "second"))
        assert [text for kind, text in transcript(app) if kind == "UserTurn"] == ["one", "two!"]
        app.query_one(PromptArea).clear()
        said = ("Note", "there is no /agin; did you mean /again? (//agin sends it as text)")
        await type_at_once(app, pilot, "/agin\nx", "/agin\nx", said)  # so that it can be mended
        app.query_one(PromptArea).clear()
        await type_at_once(app, pilot, "/new\nnext", "next", ("Note", "New conversation."))


async def test_a_question_that_was_refused_comes_back_before_what_was_typed_since() -> None:
    app = app_of(["ok"], context=60)
    async with app.run_test() as pilot:
        said = "the message takes at least 100 tokens; the context is 60 (send a shorter message)"
        await type_at_once(app, pilot, "x" * 100 + "\nmore", "x" * 100 + "\nmore", ("Note", said))


async def test_ctrl_r_replaces_the_answer() -> None:
    app = app_of(["first"], ["second"])
    async with app.run_test() as pilot:
        await pilot.press("ctrl+r")
        assert transcript(app) == []
        await ask(app, pilot, "go")
        await settle(app, pilot)
        await pilot.press("ctrl+r")
        await settle(app, pilot)
        assert transcript(app) == [("UserTurn", "go"), ("answer", "second")]


async def test_a_draft_is_back_after_the_edit_that_interrupted_it() -> None:
    app = app_of(["One."], ["Two."])
    async with app.run_test() as pilot:
        await ask(app, pilot, "First?")
        await settle(app, pilot)
        prompt = app.query_one(PromptArea)
        prompt.insert("half a question")
        await pilot.press("ctrl+e", "ctrl+e", "escape")
        assert prompt.text == "half a question"
        await pilot.press("ctrl+e", "enter")
        await settle(app, pilot)
        assert prompt.text == "half a question"
        assert app.recorder.session.history.messages[-1].text == "Two."


async def test_ctrl_n_starts_a_new_conversation() -> None:
    app = app_of(["first"])
    async with app.run_test() as pilot:
        await ask(app, pilot, "go")
        await settle(app, pilot)
        await pilot.press("ctrl+n")
        await pilot.pause()
        assert transcript(app) == []
        assert app.session.history.messages == ()
        assert "0 / 512 tokens" in status(app)


async def test_ctrl_s_saves_a_file_that_reads_back_and_never_overwrites_one(tmp_path: Path) -> None:
    app = app_of(CALL, folder=tmp_path / "chats")
    async with app.run_test() as pilot:
        await pilot.press("ctrl+s")
        assert not (tmp_path / "chats").exists()
        await ask(app, pilot, "What is 2+2?")
        await settle(app, pilot)
        await pilot.press("ctrl+s")
        await pilot.press("ctrl+s")
        await pilot.pause()
    files = sorted((tmp_path / "chats").iterdir())
    assert len(files) == 2
    for file in files:
        assert parse_conversation(json.loads(file.read_text())) == app.session.history


async def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    app = app_of(["ok"], folder=tmp_path / "file")
    async with app.run_test() as pilot:
        await ask(app, pilot, "go")
        await settle(app, pilot)
        await pilot.press("ctrl+s")
        await pilot.pause()
        assert any("Not saved" in notification.message for notification in app._notifications)


@pytest.mark.parametrize("text", ["", "   ", "\n"])
async def test_empty_input_is_ignored(text: str) -> None:
    app = app_of(["ok"])
    async with app.run_test() as pilot:
        await ask(app, pilot, text)
        assert transcript(app) == []


async def test_what_the_user_types_is_never_markup_nor_control() -> None:
    app = app_of(["[bold]ok[/bold] [@click=app.quit]x[/]"])
    async with app.run_test() as pilot:
        await ask(app, pilot, "[red]a[/red] \u202e**b**")
        await settle(app, pilot)
        assert transcript(app)[0] == ("UserTurn", "[red]a[/red] **b**")


async def test_tool_calls_are_never_markup() -> None:
    app = app_of(
        ["<|python_start|>", "'[red]'.count('r')", "<|python_end|>", "<|python_start|>", "[/]", "<|python_end|>"]
    )
    async with app.run_test() as pilot:
        await ask(app, pilot, "go")
        await settle(app, pilot)
        assert transcript(app)[1:] == [("ToolCall", "'[red]'.count('r') = 1"), ("ToolCall", "[/]")]


async def test_ctrl_j_breaks_the_line() -> None:
    app = app_of(["ok"])
    async with app.run_test() as pilot:
        await pilot.press("a", "ctrl+j", "b", "enter")
        await settle(app, pilot)
        assert transcript(app)[0] == ("UserTurn", "a\nb")


async def test_errors_of_the_worker_reach_the_screen() -> None:
    app = app_of(["ok"], context=50)
    async with app.run_test() as pilot:
        await ask(app, pilot, "x" * 100)
        await settle(app, pilot)
        assert "send a shorter message" in transcript(app)[-1][1]
        assert len(transcript(app)) == 1 and app.query_one(PromptArea).text == "x" * 100, "to be made shorter"
        app.query_one(PromptArea).clear()
        app.session._engine.model.scripts = []
        await ask(app, pilot, "go")
        await settle(app, pilot)
        assert transcript(app)[-1][1].startswith("ZeroDivisionError")


@pytest.mark.parametrize("key", ["ctrl+q", "ctrl+c"])
async def test_quitting_in_the_middle_of_an_answer_ends_the_worker(key: str) -> None:
    app = app_of(["abcdef"], pause_after=2)
    async with app.run_test() as pilot:
        await ask(app, pilot, "go")
        model = app.session._engine.model
        await asyncio.to_thread(model.paused.wait, PATIENCE_SECONDS)
        await pilot.press(key)
        model.resume.set()
        await pilot.pause()
    assert not app.is_running


async def test_a_loaded_conversation_is_shown() -> None:
    app = app_of(CALL)
    list(app.session.send("What is 2+2?"))
    async with app.run_test() as pilot:
        await pilot.pause()
        assert [kind for kind, _ in transcript(app)] == ["UserTurn", "answer", "ToolCall", "answer"]


async def test_the_screen_can_be_drawn() -> None:
    app = app_of(["# Title\n\n- one\n- two\n\n```python\nprint(1)\n```\n"])
    async with app.run_test(size=(90, 30)) as pilot:
        await ask(app, pilot, "Show me")
        await settle(app, pilot)
        svg = app.export_screenshot()
    assert "Title" in svg and app.query(UserTurn) is not None and not list(app.query(ToolCall))


async def test_what_is_pasted_is_cleaned_and_sent_only_by_enter() -> None:
    app = app_of(["ok"])
    async with app.run_test() as pilot:
        prompt = app.query_one(PromptArea)
        prompt.insert("x")
        app.post_message(events.Paste("one\r\ntwo \x1b[31mred\x1b[0m \u202eleft\n"))
        await pilot.pause()
        assert prompt.text == "xone\ntwo red left\n" and transcript(app) == []
        app.transcript.focus()
        await pilot.pause()
        app.post_message(events.Paste("!"))
        await wait_for(pilot, lambda: prompt.text == "xone\ntwo red left\n!" and prompt.has_focus)


async def test_typing_and_escape_lead_back_to_the_prompt() -> None:
    app = app_of(CALL)
    async with app.run_test() as pilot:
        prompt = app.query_one(PromptArea)
        await ask(app, pilot, "go")
        await settle(app, pilot)
        await pilot.press("tab", "tab")
        assert app.focused is not None and isinstance(app.focused.parent, ToolCall)
        await pilot.press("enter")
        assert not app.query_one(ToolCall).collapsed
        await pilot.press("f1")
        await pilot.pause()
        assert "A TOOL CALL" in str(app.screen.query_one("HelpText", Static).render())
        await pilot.press("escape", "escape")
        await pilot.pause()
        assert prompt.has_focus
        await pilot.press("shift+tab", "shift+tab")
        await pilot.pause()
        assert app.focused is app.transcript
        await pilot.press("f1")
        await pilot.pause()
        assert "THE CONVERSATION" in str(app.screen.query_one("HelpText", Static).render())
        await pilot.press("f1", "a")
        await pilot.pause()
        assert prompt.has_focus and prompt.text == "a"


async def test_ctrl_t_unfolds_and_folds_every_tool_call_and_pages_scroll() -> None:
    app = app_of([*CALL, *CALL, "long\n\n" * 40])
    async with app.run_test(size=(60, 20)) as pilot:
        await pilot.press("ctrl+t")
        assert any("no tool call" in note.message for note in app._notifications)
        await ask(app, pilot, "go")
        await settle(app, pilot)
        await pilot.press("ctrl+t")
        assert [call.collapsed for call in app.query(ToolCall)] == [False, False]
        await pilot.press("ctrl+t")
        assert [call.collapsed for call in app.query(ToolCall)] == [True, True]
        app.transcript.scroll_end(animate=False, immediate=True)
        await pilot.pause()
        for key, is_end in (("pageup", False), ("pagedown", True)):
            await pilot.press(key)
            await wait_for(pilot, lambda end=is_end: (app.transcript.scroll_y == app.transcript.max_scroll_y) == end)


async def test_a_server_is_talked_to_on_the_full_screen_and_stopped() -> None:
    hold = threading.Event()
    with foreign(text("Hi"), Reply(parts=[delta(content="half"), DONE], hold=hold), error(500, "no")) as server:
        at = Server(server.url)
        session = RemoteSession(at, at.list_models()[0])
        app = ChatApp(Recorder(session, None), Path(), RemoteModels(at, at.list_models()))
        async with app.run_test() as pilot:
            assert status(app) == "one   0 tokens"
            await ask(app, pilot, "go")
            await settle(app, pilot)
            await ask(app, pilot, "more")
            await wait_for(pilot, lambda: transcript(app)[-1] == ("answer", "half"))
            await pilot.press("escape")
            await settle(app, pilot)
            assert transcript(app)[-2:] == [("answer", "half"), ("Note", "Stopped.")]
            assert await asyncio.to_thread(server.gone.wait, PATIENCE_SECONDS)
            await ask(app, pilot, "once more")
            await settle(app, pilot)
            assert "failed with status 500: no" in transcript(app)[-1][1]
            assert app.query_one(PromptArea).text == "once more"
            assert [kind for kind, _ in transcript(app)].count("UserTurn") == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
async def test_a_signal_gives_the_terminal_back_and_keeps_what_was_said(number: int) -> None:
    app = app_of(["abcdef"], pause_after=2)
    async with app.run_test() as pilot:
        await ask(app, pilot, "go")
        model = app.session._engine.model
        await asyncio.to_thread(model.paused.wait, PATIENCE_SECONDS)
        os.kill(os.getpid(), number)
        while app.return_code is None:
            await asyncio.sleep(0.01)
        model.resume.set()
        await pilot.pause()
    assert app.return_code == 128 + number
    assert app.session.history.messages[1].text.startswith("abc")
