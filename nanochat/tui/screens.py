"""Screens over the chat: the list of conversations, the numbers of sampling."""

import time
from collections.abc import Callable
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Input, Label, OptionList, Static
from textual.widgets.option_list import Option

from nanochat.chat.recorder import Recorder
from nanochat.chat.store import ChatStore
from nanochat.errors import NanochatError
from nanochat.text import plain_text
from nanochat.tui.commands import NUMBERS, explain, optional_numbers, set_number


class ChatsScreen(ModalScreen[str | None]):
    """The list of conversations with a search; gives the id of the one that was chosen."""

    AUTO_FOCUS = "Input"
    BINDINGS: ClassVar = [
        Binding("escape", "dismiss", "Close", priority=True),
        Binding("f2", "dismiss", "Close", priority=True, id="chats"),
        Binding("down", "into_list", "List"),
        Binding("delete,ctrl+d", "remove", "Remove"),
    ]

    def __init__(self, store: ChatStore) -> None:
        super().__init__()
        self.store = store
        self._to_remove = ""

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Input(placeholder="Words to look for", id="search")
            yield OptionList(id="chats", markup=False)
            yield Static("Enter opens, Delete removes, Esc closes.", id="hint", classes="note", markup=False)

    def on_mount(self) -> None:
        self._show("")

    @on(Input.Changed)
    def search(self, event: Input.Changed) -> None:
        self._show(event.value)

    @on(Input.Submitted)
    def open_first(self) -> None:
        options = self.query_one(OptionList)
        if options.option_count:
            self.dismiss(options.get_option_at_index(options.highlighted or 0).id)

    @on(OptionList.OptionSelected)
    def open_chosen(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(event.option_id)

    def action_into_list(self) -> None:
        self.query_one(OptionList).focus()

    def action_remove(self) -> None:
        """The first press asks, the second removes."""
        options, hint = self.query_one(OptionList), self.query_one("#hint", Static)
        if options.highlighted is None or not options.has_focus:
            return
        chat = options.get_option_at_index(options.highlighted).id or ""
        if self._to_remove != chat:
            self._to_remove = chat
            hint.update("Delete once more removes it with all of its branches.")
            return
        try:
            self.store.delete(chat)
        except NanochatError as error:
            hint.update(explain(error))
            return
        hint.update("Removed.")
        self._show(self.query_one(Input).value)

    def _show(self, words: str) -> None:
        options = self.query_one(OptionList)
        options.clear_options()
        self._to_remove = ""
        try:
            found = self.store.list(words, 200)
        except NanochatError as error:
            self.query_one("#hint", Static).update(explain(error))
            return
        for info in found:
            day = time.strftime("%m-%d %H:%M", time.localtime(info.updated))
            options.add_option(Option(f"{day}  {plain_text(info.title) or info.id}", id=info.id))
        if options.option_count:
            options.highlighted = 0


class SamplingScreen(ModalScreen[None]):
    """The numbers that answers are drawn with, and the system prompt of the next conversation."""

    AUTO_FOCUS = "Input"
    BINDINGS: ClassVar = [
        Binding("escape", "dismiss", "Close", priority=True),
        Binding("f3", "dismiss", "Close", priority=True, id="sampling"),
    ]

    def __init__(self, recorder: Recorder, changed: Callable[[], None]) -> None:
        super().__init__()
        self.recorder, self.changed = recorder, changed

    def compose(self) -> ComposeResult:
        params = self.recorder.session.params
        optional = optional_numbers(params)
        unset = "the server's" if len(optional) == len(NUMBERS) else "off"
        with Vertical(), VerticalScroll(can_focus=False):
            for name in NUMBERS:
                value = getattr(params, name)
                shown = "" if value is None else f"{value:g}" if isinstance(value, float) else f"{value}"
                with Horizontal():
                    yield Label(name.replace("_", " "))
                    yield Input(shown, placeholder=unset if name in optional else "", id=name)
            with Horizontal():
                yield Label("next system prompt")
                yield Input(self.recorder.system, id="system")
            yield Static("Enter takes a value, Tab goes on, Esc closes.", id="hint", classes="note", markup=False)

    @on(Input.Submitted)
    @on(Input.Blurred)
    def take(self, event: Input.Submitted | Input.Blurred) -> None:
        hint, name = self.query_one("#hint", Static), event.input.id or ""
        try:
            if name == "system":
                self.recorder.set_system(event.input.value)
            else:
                set_number(self.recorder, name, event.input.value.strip())
        except NanochatError as error:
            hint.set_classes("error")
            hint.update(explain(error))
            return
        hint.set_classes("note")
        if isinstance(event, Input.Submitted):
            hint.update(f"{name.replace('_', ' ')} is set.")
        self.changed()
