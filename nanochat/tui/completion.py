"""What a line that begins with a slash may become. Knows names, asks nobody."""

import os.path
from collections.abc import Callable, Sequence
from contextlib import suppress

from nanochat.chat.recorder import Recorder
from nanochat.tui.commands import COMMANDS, NUMBERS, Models, optional_numbers
from nanochat.tui.preferences import list_themes

MAX_CHATS = 20


class Completer:
    """Completes commands and their arguments. models: None where there is only one."""

    def __init__(self, recorder: Recorder, models: Models | None = None) -> None:
        self.recorder, self.models = recorder, models

    def complete(self, line: str) -> list[str]:
        """The lines that this beginning may become; none where it is no command.

        "/se" -> ["/set "], "/set top" -> ["/set top_k ", "/set top_p "]
        """
        if not line.startswith("/") or "\n" in line:
            return []
        name, space, rest = line[1:].partition(" ")
        if not space:
            return [f"/{known}{' ' if COMMANDS[known][0] else ''}" for known in COMMANDS if known.startswith(name)]
        return [f"/{name} {argument}" for argument in self._arguments(name, rest) if argument.startswith(rest)]

    def _arguments(self, name: str, rest: str) -> Sequence[str]:
        if name == "set":
            number, space, _ = rest.partition(" ")
            if space:
                return [f"{number} off"] if number in optional_numbers(self.recorder.session.params) else []
            return [f"{number} " for number in NUMBERS]
        if name == "model" and self.models is not None:
            return self.models.known_names()
        if name == "theme":
            return list_themes()
        if name == "open" and self.recorder.store is not None:
            return ["latest", *(info.id for info in self.recorder.store.list("", MAX_CHATS))]
        return []


def join_common(lines: Sequence[str]) -> str:
    """What all lines begin with."""
    return os.path.commonprefix(list(lines))


def complete_in_readline(complete: Callable[[str], list[str]]) -> None:
    """Let Tab complete at input()'s prompt, where Python has readline."""
    with suppress(ImportError):
        import readline

        found: list[str] = []

        def offer(text: str, state: int) -> str | None:
            if state == 0:
                found[:] = complete(text)
            return found[state] if state < len(found) else None

        readline.set_completer_delims("\n")
        readline.set_completer(offer)
        is_libedit = "libedit" in (readline.__doc__ or "")
        readline.parse_and_bind("bind ^I rl_complete" if is_libedit else "tab: complete")
