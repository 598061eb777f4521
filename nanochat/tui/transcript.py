"""The conversation on the screen, turn by turn; it is shown as it comes and knows no model."""

from collections.abc import Sequence

from textual.containers import VerticalScroll
from textual.widget import Widget
from textual.widgets import Markdown
from textual.widgets.markdown import MarkdownStream

from nanochat.chat.decoding import Piece
from nanochat.chat.store import StoredMessage
from nanochat.conversation import Message
from nanochat.text import plain_text
from nanochat.tui.widgets import AnswerText, Note, ToolCall, UserTurn

MAX_TURNS = 40
"""On the screen. With a hundred long ones a key takes a fifth of a second on a slow machine."""


class Transcript(VerticalScroll):
    """Turns of a user's message and what was answered. It scrolls with what is added."""

    def __init__(self) -> None:
        super().__init__(id="transcript")
        self._num_hidden = 0  # oldest turns that are not on the screen
        self._turns: list[list[Widget]] = []  # of each turn the user's message, then the answer and notes
        self._stream: MarkdownStream | None = None
        self._call: ToolCall | None = None

    async def clear(self) -> None:
        self._turns.clear()
        self._num_hidden = 0
        self._stream = self._call = None
        await self.remove_children()

    async def show_conversation(self, messages: Sequence[Message], path: Sequence[StoredMessage], hint: str) -> None:
        """Whole turns, from the first one. path: as they are stored; empty where they are not. hint: how to see
        another branch."""
        await self.clear()
        turns = list(enumerate(zip(messages[::2], messages[1::2], strict=True)))
        self._num_hidden = max(0, len(turns) - MAX_TURNS)
        for turn, (asked, answered) in turns[self._num_hidden :]:
            widgets: list[Widget] = [UserTurn(asked.text, find_branch(path, 2 * turn))]
            for part in answered.parts:
                text, call = plain_text(part.text), widgets[-1]
                if part.kind == "python_output" and isinstance(call, ToolCall):
                    call.show_result(text)
                elif part.kind == "text":
                    widgets += [AnswerText(text)] if text else []
                else:
                    widgets.append(ToolCall(text))
            if branch := find_branch(path, 2 * turn + 1):
                widgets.append(Note(f"answer {branch}; {hint}"))
            if len(path) > 2 * turn + 1 and path[2 * turn + 1].finish is None:
                is_open = path[2 * turn + 1].is_elsewhere
                widgets.append(
                    Note("Being answered in another program." if is_open else "This answer was never finished.")
                )
            self._turns.append(widgets)
        await self._say_hidden()
        await self.mount_all([widget for widgets in self._turns for widget in widgets])  # at once: far faster
        self.anchor()

    def fold(self) -> bool:
        """Unfold all tool calls, or fold them where all are open. Whether there are any."""
        calls = list(self.query(ToolCall))
        is_folded = all(not call.collapsed for call in calls)
        for call in calls:
            call.collapsed = is_folded
        return bool(calls)

    async def open_turn(self, text: str, branch: str = "") -> None:
        """Show a question; what follows is its answer."""
        while len(self._turns) >= MAX_TURNS:
            await self.remove_children(self._turns.pop(0))
            self._num_hidden += 1
        await self._say_hidden()
        self._turns.append([])
        await self._add(UserTurn(text, branch))

    async def remove_turns(self, first: int) -> None:
        """Take a turn and all after it away."""
        place = max(0, first - self._num_hidden)
        await self.remove_children([widget for widgets in self._turns[place:] for widget in widgets])
        del self._turns[place:]
        self._num_hidden = min(first, self._num_hidden)
        await self._say_hidden()

    async def note(self, text: str, kind: str = "note") -> None:
        if not self._turns:
            self._turns.append([])
        await self._add(Note(text, kind))

    async def show(self, piece: Piece) -> None:
        """Some of an answer."""
        if piece.kind == "python_output" and self._call is not None:
            self._call.show_result(piece.text)
            self._call = None
        elif piece.kind == "text":
            if not piece.text:  # a stream that was given nothing never ends
                return
            if self._stream is None:
                block = AnswerText()
                await self._add(block)
                self._stream = Markdown.get_stream(block)
            await self._stream.write(piece.text)
        else:
            await self.end_text()
            self._call = ToolCall(piece.text)
            await self._add(self._call)

    async def end_text(self) -> None:
        """Whatever text comes next is a block of its own."""
        if self._stream is not None:
            await self._stream.stop()
            self._stream = None

    async def end_answer(self) -> None:
        await self.end_text()
        self._call = None

    async def _say_hidden(self) -> None:
        await self.query("#hidden").remove()
        if self._num_hidden:
            note = Note(f"{self._num_hidden} older turns are not on the screen; nanochat chats show has them.")
            note.id = "hidden"
            await self.mount(note, before=0)

    async def _add(self, widget: Widget) -> None:
        self._turns[-1].append(widget)
        await self.mount(widget)
        self.anchor()


def find_branch(path: Sequence[StoredMessage], place: int) -> str:
    """ "2/3" for the second of three siblings; "" where there is only one."""
    if not 0 <= place < len(path) or len(path[place].siblings) < 2:
        return ""
    siblings = path[place].siblings
    return f"{siblings.index(path[place].id) + 1}/{len(siblings)}"
