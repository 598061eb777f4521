"""The help: what the focused part of the screen is for, then keys as they are now, then commands."""

from collections.abc import Callable

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widget import Widget
from textual.widgets import Input, OptionList, Static

from nanochat.tui.commands import NUMBERS, describe_commands, format_pairs
from nanochat.tui.keys import Keymap, list_keys, show_keys
from nanochat.tui.transcript import Transcript
from nanochat.tui.widgets import PromptArea, ToolCall

TOPICS = {
    "prompt": (
        "The prompt",
        "Write a question; {send} sends it, {newline} breaks the line. Up in an empty prompt brings the last text "
        "back, Ctrl-Z undoes. A line that begins with / is a command: {complete} completes it; // sends a text that "
        "begins with /. {editor} opens an editor. What you write while an answer comes stays here until you send it.",
    ),
    "transcript": (
        "The conversation",
        "Up, Down, {page_up} and {page_down} scroll, Home and End go to its ends. Tab goes on to the tool calls and to "
        "the prompt; typing goes there at once. Where a question or an answer has several forms, {previous} and {next} "
        "show the others.",
    ),
    "tool": (
        "A tool call",
        "The model did not compute this itself: it called a calculator, which gave the result. Enter unfolds or folds "
        "it, {tools} all of them; Tab goes on, {stop} goes back to the prompt.",
    ),
    "search": (
        "The search",
        "Words that stand in a conversation, in any order. Enter opens the one that is marked, Down goes into the "
        "list, Esc closes it.",
    ),
    "chats": (
        "The list of conversations",
        "The newest is first. Up and Down choose, Enter opens, Delete pressed twice removes a conversation with all of "
        "its branches, Tab goes to the search, Esc closes it.",
    ),
    "temperature": ("Temperature", "0 always takes the likeliest token; 1 is how the model was trained."),
    "top_k": ("Top k", "Only so many of the likeliest tokens are drawn from. Empty: all."),
    "top_p": ("Top p", "Only the likeliest tokens that together reach this probability, above 0 to 1. Empty: all."),
    "min_p": ("Min p", "Only tokens at least this times as likely as the likeliest one, 0 to 1. Empty: all."),
    "repetition_penalty": (
        "Repetition penalty",
        "Above 1, tokens that have been said become less likely. 1 changes nothing.",
    ),
    "seed": ("Seed", "The same seed gives the same answer to the same question. {regenerate} goes on to the next one."),
    "max_new_tokens": ("Max new tokens", "How long an answer may be; it is cut there, which is said."),
    "system": (
        "The system prompt",
        "Put before the first question of the conversations that begin from now on; this one keeps its own.",
    ),
}
NUMBER_HELP = " Enter takes the value, Tab goes on, Esc closes. With a server, an empty field leaves it to the server."


class HelpScreen(ModalScreen[None]):
    """topic: a key of TOPICS. keymap: as it is now."""

    BINDINGS = [Binding("escape,q", "dismiss", "Close"), Binding("f1", "dismiss", "Close", id="help")]

    def __init__(self, topic: str, keymap: Keymap) -> None:
        super().__init__()
        self.topic, self.keymap = topic, keymap

    def compose(self) -> ComposeResult:
        with Vertical(), VerticalScroll():
            yield HelpText(self.describe)

    def on_mount(self) -> None:
        self.query_one(VerticalScroll).focus()

    def describe(self, width: int) -> str:
        """The whole text."""
        title, words = TOPICS[self.topic]
        words += NUMBER_HELP if self.topic in NUMBERS else ""
        parts = [
            f"{title.upper()}\n{words.format(**show_keys(self.keymap))}",
            "Up and Down scroll this, Esc closes it.",
            f"KEYS\n{format_pairs(list_keys(self.keymap), width)}",
            f"COMMANDS, typed instead of a question\n{describe_commands(width)}",
            'Other keys: a file chat.toml in $NANOCHAT_HOME, as\n\n[keys]\nregenerate = "ctrl+g"\n\n'
            f"The names: {', '.join(self.keymap)}.",
        ]
        return "\n\n".join(parts)


class HelpText(Static):
    """A text that is made for the width it has."""

    def __init__(self, describe: Callable[[int], str]) -> None:
        super().__init__(markup=False)
        self._describe = describe

    def on_resize(self) -> None:
        self.update(self._describe(self.content_size.width))


def find_topic(focused: Widget | None) -> str:
    """What the help begins with."""
    if focused is None or isinstance(focused, PromptArea):
        return "prompt"
    if any(isinstance(node, ToolCall) for node in focused.ancestors_with_self):
        return "tool"
    if isinstance(focused, Transcript):
        return "transcript"
    if isinstance(focused, (Input, OptionList)) and focused.id in TOPICS:
        return focused.id
    return "prompt"
