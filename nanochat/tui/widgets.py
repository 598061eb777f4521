"""What a conversation is made of on the screen. Nothing that a model or a user wrote is taken for markup."""

from textual import events
from textual.message import Message
from textual.widgets import Collapsible, Markdown, Static, TextArea

from nanochat.engine.decoding import plain_text


class PromptArea(TextArea):
    """Where the user types: Enter sends, Ctrl-J breaks the line. Up in an empty prompt brings the last text back."""

    class Submitted(Message):
        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    last = ""

    async def _on_key(self, event: events.Key) -> None:
        if event.key == "enter":
            event.prevent_default()
            event.stop()
            self.last = self.text.strip() or self.last
            self.post_message(self.Submitted(self.text))
        elif event.key == "ctrl+j":
            event.prevent_default()
            event.stop()
            self.insert("\n")
        elif event.key == "up" and not self.text and self.last:
            event.prevent_default()
            event.stop()
            self.fill(self.last)
        else:
            await super()._on_key(event)

    def fill(self, text: str) -> None:
        """Show a text to be changed, the cursor at its end."""
        self.text = text
        self.move_cursor(self.document.end)


class UserTurn(Static):
    """A message of the user, shown as it was typed. branch: its place among siblings, such as "2/3"."""

    def __init__(self, text: str, branch: str = "") -> None:
        super().__init__(plain_text(text) + (f"  ({branch})" if branch else ""), markup=False)


class Note(Static):
    """A line of the program's own."""

    def __init__(self, text: str, kind: str = "note") -> None:
        super().__init__(plain_text(text), classes=kind, markup=False)


class ToolCall(Collapsible):
    """An expression that the model computed, and its result once it is there; folded up it is one line."""

    def __init__(self, expression: str) -> None:
        self.expression = expression
        self.result: str | None = None
        self._body = Static(f"calculator: {expression}", markup=False)
        super().__init__(self._body, title=_as_title(expression), collapsed=True)

    def show_result(self, result: str) -> None:
        self.result = result
        self.title = _as_title(f"{self.expression} = {result}")
        self._body.update(f"calculator: {self.expression}\nresult: {result}")


class AnswerText(Markdown):
    """A stretch of an answer. Links are shown, never opened: a model wrote them."""

    def __init__(self) -> None:
        super().__init__(open_links=False)


def _as_title(text: str) -> str:
    """One short line; a title would read [...] as markup."""
    line = " ".join(plain_text(text).split())
    return (line if len(line) <= 60 else f"{line[:57]}...").replace("[", "\\[")
