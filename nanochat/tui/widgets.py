"""What a conversation is made of on the screen. Nothing that a model or a user wrote is taken for markup."""

from collections.abc import Callable

from textual import events
from textual.message import Message
from textual.widgets import Collapsible, Markdown, Static, TextArea

from nanochat.text import plain_text
from nanochat.tui.completion import join_common
from nanochat.tui.keys import ACTIONS, Keymap, shorten_key


class PromptArea(TextArea):
    """Where the user types. Up in an empty prompt brings the last text back.

    complete: a line to what it may become. Keys are looked at here, in their order among the letters, and not by
    bindings, which would be followed before letters that are still on their way.
    """

    class Submitted(Message):
        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    last = ""

    def __init__(self, complete: Callable[[str], list[str]], keymap: Keymap, placeholder: str) -> None:
        super().__init__(id="prompt", show_line_numbers=False, placeholder=placeholder)
        self._complete = complete
        actions = {"send": self.submit, "newline": self.break_line, "complete": self.complete}
        self._actions = {key: action for name, action in actions.items() for key in keymap[name]}
        self._offers: list[str] = []  # which Tab goes through

    def submit(self) -> None:
        """Take the text out at once: letters that wait behind this key belong to the next one."""
        text = self.text
        self.last = text.strip() or self.last
        self.clear()
        self.post_message(self.Submitted(text))

    def give_back(self, text: str) -> None:
        """Show a text again that was not taken, before what was typed since."""
        self.fill("\n".join(filter(None, (text, self.text))))

    def break_line(self) -> None:
        self.insert("\n")

    def complete(self) -> None:
        """Go as far as all completions agree, then through them; where there is none, on to the next widget."""
        if self.text in self._offers:
            self.fill(self._offers[(self._offers.index(self.text) + 1) % len(self._offers)])
            return
        found = self._complete(self.text)
        if not found:
            if not self.text.startswith("/"):
                self.screen.focus_next()
            return
        common = join_common(found)
        if len(common) > len(self.text):
            self.fill(common)
        elif len(found) > 1:
            self._offers = found
            self.fill(found[0])

    def on_text_area_changed(self) -> None:
        """Show what a command may become, below it."""
        found = self._complete(self.text)
        if self.text not in self._offers:
            self._offers = []
        offers = [line.rstrip().rpartition(" ")[2] for line in self._offers or found]
        self.border_subtitle = "  ".join(offers).replace("[", "\\[") if self.text.startswith("/") else ""

    def on_paste(self, event: events.Paste) -> None:
        event.prevent_default()
        event.stop()
        self.take(event.text)

    def take(self, text: str) -> None:
        """Insert what was typed or pasted, without what could steer a terminal."""
        self.insert(plain_text(text.replace("\r\n", "\n").replace("\r", "\n")))

    async def _on_key(self, event: events.Key) -> None:
        action = self._actions.get(event.key)
        if event.key == "up" and not self.text and self.last:
            action = self.recall
        if action is None:
            await super()._on_key(event)
            return
        event.prevent_default()
        event.stop()
        action()

    def recall(self) -> None:
        self.fill(self.last)

    def fill(self, text: str) -> None:
        """Show a text to be changed, the cursor at its end."""
        self.text = text
        self.move_cursor(self.document.end)


class KeyLine(Static):
    """The most important keys as they are now, as many as fit; a click does what the key does."""

    def __init__(self, keymap: Keymap) -> None:
        super().__init__(id="keys")
        self._entries = [(shorten_key(keymap[action.name][0]), action) for action in ACTIONS if action.label]

    def on_resize(self) -> None:
        room = self.content_size.width
        shown = []
        for key, action in self._entries:
            room -= len(f"{key} {action.label}") + 2
            if room >= -2:
                shown.append(f"[@click=app.{action.name}][b]{key}[/b] {action.label}[/]")
        self.update("  ".join(shown))


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

    def __init__(self, text: str = "") -> None:
        super().__init__(text, open_links=False)


def _as_title(text: str) -> str:
    """One short line; a title would read [...] as markup."""
    line = " ".join(plain_text(text).split())
    return (line if len(line) <= 60 else f"{line[:57]}...").replace("[", "\\[")
