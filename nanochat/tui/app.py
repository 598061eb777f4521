"""The full-screen chat: a transcript that streams Markdown, a prompt, a status line.

Knows a conversation and nothing of models or files but the folder that conversations are exported to.
"""

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

from textual import events, on
from textual.app import ComposeResult, SuspendNotSupported
from textual.binding import Binding
from textual.widgets import Static

from nanochat.chat.recorder import Recorder
from nanochat.errors import NanochatError
from nanochat.tui import screens
from nanochat.tui.commands import Models, Outcome, as_text, explain, parse_command, run_command, step_branch
from nanochat.tui.completion import Completer
from nanochat.tui.help import HelpScreen, find_topic
from nanochat.tui.keys import ACTIONS, DEFAULT_KEYS, show_keys
from nanochat.tui.preferences import THEMES, Preferences, list_themes
from nanochat.tui.saving import save_conversation
from nanochat.tui.status import describe_status
from nanochat.tui.style import CSS
from nanochat.tui.threads import ThreadApp
from nanochat.tui.transcript import Transcript, find_branch
from nanochat.tui.widgets import KeyLine, PromptArea

LOW_HEIGHT = 16
"""Rows below which the footer makes room for the conversation."""
CATCH_UP_SECONDS = 2.0
"""Between two looks at whether another program went on with the conversation."""
OF_PROMPT = ("send", "newline", "complete")
"""Actions of the prompt itself."""


class ChatApp(ThreadApp):
    """One conversation at a time. export_folder is where Ctrl-S writes.

    models: to switch between; None where there is only one. edit: opens the user's editor with a text and returns what
    became of it.
    """

    ENABLE_COMMAND_PALETTE = False
    TITLE = "nanochat"
    CSS = CSS
    BINDINGS: ClassVar = [
        Binding(
            ",".join(action.keys), action.name, action.label, id=action.name, priority=True, show=bool(action.label)
        )
        for action in ACTIONS
        if action.name not in OF_PROMPT
    ]

    def __init__(
        self,
        recorder: Recorder,
        export_folder: Path,
        models: Models | None = None,
        preferences: Preferences | None = None,
        edit: Callable[[str], str] | None = None,
        typed: str = "",
    ) -> None:
        super().__init__()
        self.recorder, self.export_folder, self.models, self.edit_text = recorder, export_folder, models, edit
        self.preferences = preferences or Preferences()
        self._busy = ""  # what is being done, for the status line
        self._editing = False
        self._typed = typed  # while the model was loaded
        self._draft = ""  # what was in the prompt before the last question came into it
        self._asked = ""

    def compose(self) -> ComposeResult:
        keys = show_keys(self.preferences.keys)
        yield Transcript()
        hint = f"Ask here. {keys['send']} sends, {keys['help']} helps."
        yield PromptArea(Completer(self.recorder, self.models).complete, self.preferences.keys, hint)
        yield Static(id="status", markup=False)
        yield KeyLine(self.preferences.keys)

    async def on_mount(self) -> None:
        changed = {name: keys for name, keys in self.preferences.keys.items() if keys != DEFAULT_KEYS[name]}
        self.set_keymap({name: ",".join(keys) for name, keys in changed.items()})
        self.theme = THEMES.get(self.preferences.theme, self.preferences.theme)
        self.query_one(PromptArea).focus()
        self.app_resume_signal.subscribe(self, lambda _: self.refresh(layout=True))  # after kill -TSTP and fg
        await self._show_all()
        self.prompt.give_back(self._typed)
        self.set_interval(0.25, self._show_status)
        self.set_interval(CATCH_UP_SECONDS, self._catch_up)
        for number in (signal.SIGTERM, signal.SIGHUP) if hasattr(signal, "SIGHUP") else ():
            asyncio.get_running_loop().add_signal_handler(number, self._end_by, number)

    def on_resize(self, event: events.Resize) -> None:
        for screen in self.screen_stack:
            screen.set_class(event.size.height < LOW_HEIGHT, "low")

    def on_unmount(self) -> None:
        self.session.stop()

    def on_key(self, event: events.Key) -> None:
        """What is typed goes into the prompt, wherever the focus is."""
        if event.is_printable and event.character:
            self._take(event.character)

    def on_paste(self, event: events.Paste) -> None:
        self._take(event.text)

    def _take(self, text: str) -> None:
        if len(self.screen_stack) == 1 and not self.prompt.has_focus:
            self.prompt.focus()
            self.prompt.take(text)

    @property
    def session(self) -> Any:
        return self.recorder.session

    @property
    def transcript(self) -> Transcript:
        return self.screen_stack[0].query_one(Transcript)

    @property
    def prompt(self) -> PromptArea:
        return self.screen_stack[0].query_one(PromptArea)

    @property
    def is_answering(self) -> bool:
        """Whether an answer or a model is on its way."""
        return bool(self._busy)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Under a screen of its own a key is that screen's; Tab and Shift-Tab go through its fields."""
        if len(self.screen_stack) == 1 or action in ("quit", "focus_next", "focus_previous"):
            return True
        return action == "help" and not isinstance(self.screen, HelpScreen)

    @on(PromptArea.Submitted)
    async def ask(self, event: PromptArea.Submitted) -> None:
        text, is_taken = event.text.strip(), False
        try:
            is_taken = not text or (not self._refuse_while_busy() and await self._take_line(text))
        except NanochatError as error:
            await self.transcript.note(explain(error), "error")
        if not is_taken:
            self.prompt.give_back(event.text)

    async def _take_line(self, text: str) -> bool:
        """Do what a command says, or answer a question; whether it was done. Raises NanochatError."""
        turn = len(self.session.history.messages) // 2
        if self._editing:
            self._end_editing()
            await self._start(self.recorder.edit(turn - 1, text), turn - 1, text)
        elif (command := parse_command(text)) is not None:
            if command[0] == "help":
                self.action_help()
            else:
                await self._follow(run_command(self.recorder, *command, self.models))
        elif await self._catch_up():
            self.notify("Nothing was sent: look at what is there now, then send again.")
            return False
        else:
            await self._start(self.recorder.send(as_text(text)), turn, as_text(text))
        return True

    async def action_regenerate(self) -> None:
        if self._refuse_while_busy():
            return
        messages = self.session.history.messages
        if not messages:
            self.notify("There is nothing to answer again.")
            return
        await self._start(self.recorder.regenerate(), len(messages) // 2 - 1, messages[-2].text)

    def action_edit(self) -> None:
        """Bring the last question into the prompt; sending it makes a branch."""
        if self._refuse_while_busy():
            return
        messages = self.session.history.messages
        if not messages:
            self.notify("There is nothing to edit.")
            return
        if not self._editing:
            self._draft = self.prompt.text
        self._editing = True
        self.prompt.border_title = f"edit the last question; {self._key('stop')} leaves it as it is"
        self.prompt.focus()
        self.prompt.fill(messages[-2].text)

    async def action_editor(self) -> None:
        """Hand the terminal to the user's editor, with what is in the prompt."""
        if self.edit_text is None:
            self.notify("There is no editor here.")
            return
        text, error = None, "This terminal cannot be given to an editor."
        with suppress(SuspendNotSupported), self.suspend():
            try:  # inside: an exception that leaves `suspend` leaves the screen dark
                text = self.edit_text(self.prompt.text)
            except NanochatError as failed:
                error = explain(failed)
            except Exception as bug:
                error = f"{type(bug).__name__}: {bug}"
        self.prompt.focus()
        if text is None:
            self.notify(error, severity="error", markup=False, timeout=10)
        else:
            self.prompt.fill(text)

    async def action_previous(self) -> None:
        await self._step(-1)

    async def action_next(self) -> None:
        await self._step(1)

    async def action_new(self) -> None:
        if self._refuse_while_busy():
            return
        self.recorder.new()
        await self._show_all()

    def action_help(self) -> None:
        self._push(HelpScreen(find_topic(self.focused), self.preferences.keys))

    def action_sampling(self) -> None:
        if not self._refuse_while_busy():
            self._push(screens.SamplingScreen(self.recorder, self._show_status))

    def action_chats(self) -> None:
        if self.recorder.store is None:
            self.notify("Conversations are not kept here.")
        elif not self._refuse_while_busy():
            self._push(screens.ChatsScreen(self.recorder.store), self._open_chat)

    def action_tools(self) -> None:
        if not self.transcript.fold():
            self.notify("There is no tool call here.")

    def action_page_up(self) -> None:
        self.transcript.scroll_page_up()

    def action_page_down(self) -> None:
        self.transcript.scroll_page_down()

    def action_theme(self) -> None:
        """The other of dark and light."""
        self.theme = THEMES["light" if self.current_theme.dark else "dark"]

    def action_copy(self) -> None:
        """The newest answer, as Markdown."""
        messages = self.session.history.messages
        if not messages:
            self.notify("There is nothing to copy yet.")
            return
        self.copy_to_clipboard(messages[-1].text)
        self.notify("The answer is copied, where this terminal lets a program copy.")

    def action_stop(self) -> None:
        if self._busy == "answering":
            self.session.stop()
        elif self._busy:
            self.notify(f"That cannot be stopped; {self._key('quit')} leaves.")
        elif self._editing:
            self.prompt.clear()
            self._end_editing()
        else:
            self.prompt.focus()

    def action_save(self) -> None:
        """Write the finished turns to a new file."""
        if not self.session.history.messages:
            self.notify("There is nothing to save yet.")
            return
        try:
            self.notify(f"Saved {save_conversation(self.session.export(), self.export_folder)}", markup=False)
        except OSError as error:
            self.notify(f"Not saved: {error}", severity="error", markup=False)

    async def action_quit(self) -> None:
        self.session.stop()
        self.exit()

    def _end_by(self, number: int) -> None:
        """Give the terminal back first, which a signal's own ending would not."""
        self.session.stop()
        self.exit(return_code=128 + number)

    async def _catch_up(self) -> bool:
        """Show what another program, such as the page, added to this conversation; whether it did."""
        if self._busy or self._editing or len(self.screen_stack) != 1:  # none while the app closes
            return False
        try:
            if not self.recorder.catch_up():
                return False
        except NanochatError:  # said where something is asked
            return False
        await self._show_all()
        what = "was deleted" if self.recorder.chat is None else "went on"
        self.notify(f"The conversation {what} in another program.")
        return True

    async def _open_chat(self, chat: str | None) -> None:
        store = self.recorder.store
        try:
            if store is not None and self.recorder.chat not in (None, *(info.id for info in store.list())):
                self.recorder.new()  # it was removed from the list
                await self._show_all()
            if chat is not None:
                self.recorder.open(chat)
                await self._show_all()
        except NanochatError as error:
            await self.transcript.note(explain(error), "error")

    async def _step(self, step: int) -> None:
        if self._refuse_while_busy():
            return
        try:
            outcome = step_branch(self.recorder, step)
        except NanochatError as error:  # another program has deleted it, or holds the file
            await self.transcript.note(explain(error), "error")
            return
        if outcome.is_other:
            await self._show_all()
        else:
            self.notify(outcome.note)

    def _push(self, screen: Any, then: Any = None) -> None:
        screen.set_class(self.size.height < LOW_HEIGHT, "low")
        self.push_screen(screen, then)

    def _key(self, action: str) -> str:
        return show_keys(self.preferences.keys)[action]

    def _refuse_while_busy(self) -> bool:
        if self._busy == "answering":
            self.notify(f"Still answering: {self._key('stop')} stops it.")
        elif self._busy:
            self.notify(f"Still {self._busy}.")
        return bool(self._busy)

    def _end_editing(self) -> None:
        self._editing = False
        self.prompt.border_title = ""
        if self._draft:
            self.prompt.give_back(self._draft)
        self._draft = ""

    async def _follow(self, outcome: Outcome) -> None:
        """Show what a command did."""
        if outcome.quits:
            await self.action_quit()
            return
        if outcome.draft is not None:
            self.prompt.give_back(outcome.draft)
            await self.action_editor()
        if outcome.theme is not None:
            await self._choose_theme(outcome.theme)
        if outcome.pieces is not None:
            await self._start(outcome.pieces, outcome.turn, outcome.text)
        elif outcome.is_other:
            await self._show_all()
        if outcome.work is not None:
            self._busy = "loading" if outcome.note else "asking"
            self.run_work(outcome.work)
        elif outcome.note:
            await self.transcript.note(outcome.note)
        self._show_status()

    async def _choose_theme(self, name: str) -> None:
        known = list_themes()
        if name in known or name in self.available_themes:
            self.theme = THEMES.get(name, name)
            said = f'To keep it: theme = "{name}" at the top of {self.preferences.path}.'
        else:
            said = (f"There is no theme {name!r}. " if name else "") + f"/theme and one of {', '.join(known)}."
        await self.transcript.note(said)

    async def _show_all(self) -> None:
        """The conversation as it is now, from its beginning."""
        self._end_editing()
        self.first_token = 0.0
        self.prompt.focus()  # what had the focus may be gone
        messages, path = self.session.history.messages, self.recorder.path
        await self.transcript.show_conversation(messages, path, self._others)
        self._show_status()

    @property
    def _others(self) -> str:
        return f"{self._key('previous')} and {self._key('next')} show the others"

    async def _start(self, pieces: Iterator[Any], turn: int, text: str) -> None:
        """Show an answer as it comes, to a question in place of a turn and all after it."""
        await self.transcript.remove_turns(turn)
        await self.transcript.open_turn(text)
        self._busy, self._asked = "answering", text
        self._show_status()
        self.run_answer(pieces)

    @on(ThreadApp.Arrived)
    async def show_piece(self, event: ThreadApp.Arrived) -> None:
        await self.transcript.show(event.piece)

    @on(ThreadApp.Ended)
    async def finish_answer(self, event: ThreadApp.Ended) -> None:
        await self.transcript.end_answer()
        if event.error and self.session.finish is None:  # refused: the conversation is as it was
            await self._show_all()
            self.prompt.give_back(self._asked)
        if self.session.finish == "cancelled" and not event.error:
            await self.transcript.note("Stopped.")
        if self.session.notice:
            await self.transcript.note(self.session.notice)
        if not event.error and (branch := find_branch(self.recorder.path, len(self.recorder.path) - 1)):
            await self.transcript.note(f"answer {branch}; {self._others}")
        if event.error:
            await self.transcript.note(event.error, "error")
        self._busy = ""
        self._show_status()

    @on(ThreadApp.Done)
    async def finish_work(self, event: ThreadApp.Done) -> None:
        self._busy = ""
        if event.outcome is not None:
            await self._follow(event.outcome)
        if event.error:
            await self.transcript.note(event.error, "error")
        self._show_status()

    def _show_status(self) -> None:
        for status in (found for screen in self.screen_stack[:1] for found in screen.query("#status").results(Static)):
            status.update(describe_status(self.session, self.first_token, self._busy))
