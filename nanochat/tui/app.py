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
from textual.containers import VerticalScroll
from textual.message import Message
from textual.widgets import Footer, Markdown, Static, TextArea
from textual.widgets.markdown import MarkdownStream

from nanochat.chats.recorder import Recorder
from nanochat.engine.decoding import Piece, plain_text
from nanochat.errors import NanochatError


class PromptArea(TextArea):
    """Where the user types: Enter sends, Ctrl-J breaks the line."""

    class Submitted(Message):
        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    async def _on_key(self, event: events.Key) -> None:
        if event.key == "enter":
            event.prevent_default()
            event.stop()
            self.post_message(self.Submitted(self.text))
        elif event.key == "ctrl+j":
            event.prevent_default()
            event.stop()
            self.insert("\n")
        else:
            await super()._on_key(event)


class UserTurn(Static):
    """A message of the user, shown as it was typed: never markup."""

    def __init__(self, text: str) -> None:
        super().__init__(plain_text(text), markup=False)


class ToolCall(Static):
    """An expression the model computed, and its result once it is there."""

    def __init__(self, expression: str) -> None:
        super().__init__(expression, markup=False)
        self.expression = expression
        self.result: str | None = None

    def show_result(self, result: str) -> None:
        self.result = result
        self.update(f"{self.expression} = {result}")


class AnswerText(Markdown):
    """A stretch of an answer. Links are shown, never opened: a model wrote them."""

    def __init__(self) -> None:
        super().__init__(open_links=False)


class ChatApp(App[None]):
    """One conversation at a time. export_folder is where Ctrl-S writes."""

    ENABLE_COMMAND_PALETTE = False
    TITLE = "nanochat"
    CSS = """
    #transcript { padding: 1 2 0 2; }
    UserTurn { margin: 1 0 1 8; padding: 0 1; background: $boost; border-left: outer $accent; }
    AnswerText { margin: 0; padding: 0; background: transparent; }
    ToolCall { margin: 0 0 1 0; padding: 0 1; width: auto; max-width: 100%; background: $panel; color: $warning; }
    .note { color: $text-muted; margin: 0 0 1 0; }
    .error { color: $error; margin: 0 0 1 0; }
    PromptArea { height: auto; min-height: 3; max-height: 10; border: round $accent; }
    #status { height: 1; padding: 0 2; color: $text-muted; }
    """
    BINDINGS: ClassVar = [
        Binding("escape", "stop", "Stop", priority=True),
        Binding("ctrl+r", "regenerate", "Again", priority=True),
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
        self._turns: list[list[Static | Markdown]] = []  # of each turn the user's message, then the answer
        self._stream: MarkdownStream | None = None
        self._call: ToolCall | None = None

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="transcript") as transcript:
            transcript.can_focus = False
        yield PromptArea(id="prompt", show_line_numbers=False, placeholder="Ask something. Enter sends.")
        yield Static(id="status", markup=False)
        yield Footer()

    async def on_mount(self) -> None:
        self.query_one(PromptArea).focus()
        messages = self.session.history.messages
        for asked, answered in zip(messages[::2], messages[1::2], strict=True):
            await self._open_turn(asked.text)
            for part in answered.parts:
                await self._show(Piece(part.kind, plain_text(part.text)))
            await self._close_stream()
        self._show_status()
        self.set_interval(0.25, self._show_status)

    def on_unmount(self) -> None:
        self.session.stop()

    @property
    def is_answering(self) -> bool:
        return self._busy

    @on(PromptArea.Submitted)
    async def ask(self, event: PromptArea.Submitted) -> None:
        text = event.text.strip()
        if not text or self._refuse_while_answering():
            return
        self.query_one(PromptArea).clear()
        await self._open_turn(text)
        self._start(self.recorder.send(text))

    async def action_regenerate(self) -> None:
        if self._refuse_while_answering():
            return
        if not self._turns or not self.session.history.messages:
            self.notify("There is nothing to answer again.")
            return
        for widget in self._turns[-1][1:]:
            await widget.remove()
        del self._turns[-1][1:]
        self._start(self.recorder.regenerate())

    async def action_new(self) -> None:
        if self._refuse_while_answering():
            return
        self.recorder.new()
        self._turns.clear()
        await self.query_one("#transcript").remove_children()
        self._show_status()

    def action_stop(self) -> None:
        if self._busy:
            self.session.stop()

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

    async def _open_turn(self, text: str) -> None:
        self._turns.append([])
        await self._add(UserTurn(text))

    async def _add(self, widget: Static | Markdown) -> None:
        transcript = self.query_one("#transcript", VerticalScroll)
        self._turns[-1].append(widget)
        await transcript.mount(widget)
        transcript.anchor()

    def _start(self, pieces: Iterator[Piece]) -> None:
        self._busy = True
        self._call = None
        self._show_status()
        self._answer(pieces)

    @work(thread=True, exit_on_error=False)
    def _answer(self, pieces: Iterator[Piece]) -> None:
        error = ""
        try:
            for piece in pieces:
                self.post_message(self.Arrived(piece))
        except NanochatError as refused:
            error = f"{refused.message} ({refused.hint})" if refused.hint else refused.message
        except Exception as bug:  # a worker's error must reach the screen, not end the app
            error = f"{type(bug).__name__}: {bug}"
        self.post_message(self.Ended(error))

    @on(Arrived)
    async def show_piece(self, event: Arrived) -> None:
        await self._show(event.piece)

    async def _show(self, piece: Piece) -> None:
        if piece.kind == "python_output" and self._call is not None:
            self._call.show_result(piece.text)
            self._call = None
        elif piece.kind == "text":
            if self._stream is None:
                block = AnswerText()
                await self._add(block)
                self._stream = Markdown.get_stream(block)
            await self._stream.write(piece.text)
        else:
            await self._close_stream()
            self._call = ToolCall(piece.text)
            await self._add(self._call)

    @on(Ended)
    async def finish_answer(self, event: Ended) -> None:
        await self._close_stream()
        if self.session.finish == "cancelled":
            await self._add(Static("Stopped.", classes="note", markup=False))
        if self.session.notice:
            await self._add(Static(self.session.notice, classes="note", markup=False))
        if event.error:
            await self._add(Static(plain_text(event.error), classes="error", markup=False))
        self._busy = False
        self._show_status()

    async def _close_stream(self) -> None:
        if self._stream is not None:
            await self._stream.stop()
            self._stream = None

    def _show_status(self) -> None:
        session = self.session
        parts = [session.name, f"{session.context_used:,} / {session.max_context:,} tokens"]
        if session.tokens_per_second:
            parts.append(f"{session.tokens_per_second:.1f} tok/s")
        if self._busy:
            parts.append("answering")
        for status in self.query("#status").results(Static):  # none where the timer ticks while the app closes
            status.update("   ".join(parts))
