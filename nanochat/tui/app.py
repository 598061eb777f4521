"""The full-screen chat: a transcript that streams Markdown, a prompt, a status line.

Knows a conversation and nothing of models or files but the folder that conversations are exported to.
Answers are computed in a worker thread, which talks to the screen by messages only.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from textual import events, on, work
from textual.app import App, ComposeResult
from textual.binding import Binding
from textual.message import Message
from textual.widgets import Footer, Static

from nanochat.chats.recorder import Recorder
from nanochat.engine.decoding import Piece, plain_text
from nanochat.errors import NanochatError
from nanochat.tui import screens
from nanochat.tui.commands import Outcome, as_text, explain, parse_command, run_command, step_branch
from nanochat.tui.transcript import Transcript
from nanochat.tui.widgets import PromptArea

LOW_HEIGHT = 16
"""Rows below which the footer makes room for the conversation."""


class ChatApp(App[None]):
    """One conversation at a time. export_folder is where Ctrl-S writes."""

    ENABLE_COMMAND_PALETTE = False
    TITLE = "nanochat"
    CSS = (
        """
    #transcript { padding: 1 2 0 2; }
    UserTurn { margin: 1 0 1 8; padding: 0 1; background: $boost; border-left: outer $accent; }
    AnswerText { margin: 0; padding: 0; background: transparent; }
    ToolCall { margin: 0 0 1 0; padding: 0 1; border: none; background: $panel; }
    ToolCall Static { color: $text-muted; }
    .note { color: $text-muted; margin: 0 0 1 0; }
    .error { color: $error; margin: 0 0 1 0; }
    PromptArea { height: auto; min-height: 3; max-height: 10; border: round $accent; }
    #status { height: 1; padding: 0 2; color: $text-muted; }
    .low #transcript { padding: 0 1; }
    .low UserTurn { margin: 0 0 0 2; }
    .low PromptArea { max-height: 4; }
    .low Footer { display: none; }
    """
        + screens.CSS
    )
    BINDINGS: ClassVar = [
        Binding("f1", "help", "Help", priority=True),
        Binding("escape", "stop", "Stop", priority=True),
        Binding("ctrl+r", "regenerate", "Again", priority=True),
        Binding("ctrl+e", "edit", "Edit", priority=True),
        Binding("f2", "chats", "Chats", priority=True),
        Binding("f3", "sampling", "Sampling", priority=True),
        Binding("f4", "copy", "Copy", priority=True, show=False),
        Binding("f6", "branch(-1)", "Previous", priority=True, show=False),
        Binding("f7", "branch(1)", "Next", priority=True, show=False),
        Binding("ctrl+n", "new", "New", priority=True),
        Binding("ctrl+s", "export", "Save", priority=True),
        Binding("ctrl+q", "quit", "Quit", priority=True),
        Binding("ctrl+c", "quit", "Quit", show=False, priority=True),
    ]

    class Arrived(Message):
        """A piece of the running answer."""

        def __init__(self, piece: Piece) -> None:
            super().__init__()
            self.piece = piece

    class Ended(Message):
        """The running answer is over; error is "" or what went wrong."""

        def __init__(self, error: str) -> None:
            super().__init__()
            self.error = error

    def __init__(self, recorder: Recorder, export_folder: Path) -> None:
        super().__init__()
        self.recorder, self.session = recorder, recorder.session
        self.export_folder = export_folder
        self._busy = False
        self._editing = False
        self._started, self._first_token = 0.0, 0.0

    def compose(self) -> ComposeResult:
        yield Transcript()
        yield PromptArea(id="prompt", show_line_numbers=False, placeholder="Ask something. Enter sends, F1 helps.")
        yield Static(id="status", markup=False)
        yield Footer()

    async def on_mount(self) -> None:
        self.query_one(PromptArea).focus()
        await self._show_all()
        self.set_interval(0.25, self._show_status)

    def on_resize(self, event: events.Resize) -> None:
        self.screen_stack[0].set_class(event.size.height < LOW_HEIGHT, "low")

    def on_unmount(self) -> None:
        self.session.stop()

    @property
    def transcript(self) -> Transcript:
        return self.query_one(Transcript)

    @property
    def is_answering(self) -> bool:
        return self._busy

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Under a screen of its own a key is that screen's."""
        return action == "quit" or len(self.screen_stack) == 1

    @on(PromptArea.Submitted)
    async def ask(self, event: PromptArea.Submitted) -> None:
        text = event.text.strip()
        if not text or self._refuse_while_answering():
            return
        try:
            command = None if self._editing else parse_command(text)
            if command is not None:
                self.query_one(PromptArea).clear()
                await self._follow(run_command(self.recorder, *command))
                return
            self.query_one(PromptArea).clear()
            if self._editing:
                self._end_editing()
                turn = len(self.session.history.messages) // 2 - 1
                await self.transcript.remove_turns(turn)
                await self.transcript.open_turn(text)
                self._start(self.recorder.edit(turn, text))
            else:
                await self.transcript.open_turn(as_text(text))
                self._start(self.recorder.send(as_text(text)))
        except NanochatError as error:
            await self.transcript.note(explain(error), "error")

    async def action_regenerate(self) -> None:
        if self._refuse_while_answering():
            return
        if self.transcript.is_empty or not self.session.history.messages:
            self.notify("There is nothing to answer again.")
            return
        await self.transcript.remove_answer()
        self._start(self.recorder.regenerate())

    def action_edit(self) -> None:
        """Bring the last question into the prompt; sending it makes a branch."""
        if self._refuse_while_answering():
            return
        messages = self.session.history.messages
        if not messages:
            self.notify("There is nothing to edit.")
            return
        self._editing = True
        prompt = self.query_one(PromptArea)
        prompt.border_title = "edit the last question; Esc leaves it as it is"
        prompt.fill(messages[-2].text)

    async def action_branch(self, step: int) -> None:
        if not self._refuse_while_answering():
            outcome = step_branch(self.recorder, step)
            if outcome.is_other:
                await self._show_all()
            else:
                self.notify(outcome.note)

    async def action_new(self) -> None:
        if self._refuse_while_answering():
            return
        self.recorder.new()
        await self._show_all()

    def action_help(self) -> None:
        self.push_screen(screens.HelpScreen())

    def action_sampling(self) -> None:
        if not self._refuse_while_answering():
            self.push_screen(screens.SamplingScreen(self.recorder, self._show_status))

    def action_chats(self) -> None:
        if self.recorder.store is None:
            self.notify("Conversations are not kept here.")
        elif not self._refuse_while_answering():
            self.push_screen(screens.ChatsScreen(self.recorder.store), self._open_chat)

    async def _open_chat(self, chat: str | None) -> None:
        store = self.recorder.store
        if store is not None and self.recorder.chat not in (None, *(info.id for info in store.list())):
            self.recorder.new()  # it was removed from the list
            await self._show_all()
        if chat is not None:
            try:
                self.recorder.open(chat)
            except NanochatError as error:
                await self.transcript.note(explain(error), "error")
                return
            await self._show_all()

    def action_copy(self) -> None:
        """The newest answer, as Markdown."""
        messages = self.session.history.messages
        if not messages:
            self.notify("There is nothing to copy yet.")
            return
        self.copy_to_clipboard(messages[-1].text)
        self.notify("The answer is copied, where this terminal lets a program copy.")

    def action_stop(self) -> None:
        if self._busy:
            self.session.stop()
        elif self._editing:
            self._end_editing()
            self.query_one(PromptArea).clear()

    def action_export(self) -> None:
        """Write the finished turns to a new file; an older one is never overwritten."""
        if not self.session.history.messages:
            self.notify("There is nothing to save yet.")
            return
        stamp = time.strftime("%Y%m%d-%H%M%S")
        text = json.dumps(self.session.export(), ensure_ascii=False, indent=2) + "\n"
        try:
            self.export_folder.mkdir(parents=True, exist_ok=True)
            for suffix in ("", *(f"-{i}" for i in range(2, 100))):
                path = self.export_folder / f"chat-{stamp}{suffix}.json"
                if not path.exists():
                    path.write_text(text, encoding="utf-8")
                    self.notify(f"Saved {path}", markup=False)
                    return
        except OSError as error:
            self.notify(f"Not saved: {error}", severity="error", markup=False)

    async def action_quit(self) -> None:
        self.session.stop()
        self.exit()

    def _refuse_while_answering(self) -> bool:
        if self._busy:
            self.notify("Still answering: Esc stops it.")
        return self._busy

    def _end_editing(self) -> None:
        self._editing = False
        self.query_one(PromptArea).border_title = ""

    async def _follow(self, outcome: Outcome) -> None:
        """Show what a command did."""
        if outcome.quits:
            await self.action_quit()
            return
        if outcome.pieces is not None:
            turn, text = outcome.turn, outcome.text
            await self.transcript.remove_turns(turn)
            await self.transcript.open_turn(text)
            self._start(outcome.pieces)
        elif outcome.is_other:
            await self._show_all()
        if outcome.note:
            await self.transcript.note(outcome.note)
        self._show_status()

    async def _show_all(self) -> None:
        """The conversation as it is now, from its beginning."""
        self._end_editing()
        await self.transcript.clear()
        messages, path = self.session.history.messages, self.recorder.path
        for turn, (asked, answered) in enumerate(zip(messages[::2], messages[1::2], strict=True)):
            await self.transcript.open_turn(asked.text, _branch(path, 2 * turn))
            for part in answered.parts:
                await self.transcript.show(Piece(part.kind, plain_text(part.text)))
            await self.transcript.end_answer()
            if branch := _branch(path, 2 * turn + 1):
                await self.transcript.note(f"answer {branch}; F6 and F7 show the others")
            if len(path) > 2 * turn + 1 and path[2 * turn + 1].finish is None:
                await self.transcript.note("This answer was never finished.")
        self._show_status()

    def _start(self, pieces: Iterator[Piece]) -> None:
        self._busy = True
        self._started, self._first_token = time.monotonic(), 0.0
        self._show_status()
        self._answer(pieces)

    @work(thread=True, exit_on_error=False)
    def _answer(self, pieces: Iterator[Piece]) -> None:
        error = ""
        try:
            for piece in pieces:
                self._first_token = self._first_token or time.monotonic() - self._started
                self.post_message(self.Arrived(piece))
        except NanochatError as refused:
            error = explain(refused)
        except Exception as bug:  # a worker's error must reach the screen, not end the app
            error = f"{type(bug).__name__}: {bug}"
        self.post_message(self.Ended(error))

    @on(Arrived)
    async def show_piece(self, event: Arrived) -> None:
        await self.transcript.show(event.piece)

    @on(Ended)
    async def finish_answer(self, event: Ended) -> None:
        await self.transcript.end_answer()
        if self.session.finish == "cancelled":
            await self.transcript.note("Stopped.")
        if self.session.notice:
            await self.transcript.note(self.session.notice)
        if branch := _branch(self.recorder.path, len(self.recorder.path) - 1):
            await self.transcript.note(f"answer {branch}; F6 and F7 show the others")
        if event.error:
            await self.transcript.note(event.error, "error")
        self._busy = False
        self._show_status()

    def _show_status(self) -> None:
        session = self.session
        parts = [session.name, f"{session.context_used:,} / {session.max_context:,} tokens"]
        if session.tokens_per_second:
            parts.append(f"{session.tokens_per_second:.1f} tok/s")
        if self._first_token:
            parts.append(f"first after {self._first_token:.2f} s")
        if self._busy:
            parts.append("answering")
        for status in self.screen_stack[0].query("#status").results(Static):  # none while the app closes
            status.update("   ".join(parts))


def _branch(path: tuple, place: int) -> str:
    """ "2/3" for the second of three siblings; "" where there is only one."""
    if not 0 <= place < len(path) or len(path[place].siblings) < 2:
        return ""
    siblings = path[place].siblings
    return f"{siblings.index(path[place].id) + 1}/{len(siblings)}"
