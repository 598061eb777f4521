"""What a line that begins with a slash does, the same in every face of the terminal.

Knows a conversation and no widget: what a command wants of its face comes back as an Outcome.
"""

import difflib
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

from nanochat.chat.decoding import Piece
from nanochat.chat.export import write_parts
from nanochat.chat.recorder import Recorder
from nanochat.errors import NanochatError, UsageError

COMMANDS = {
    "help": ("", "these commands"),
    "new": ("", "begin another conversation"),
    "again": ("", "answer the last question again; both answers are kept"),
    "edit": ("[#N] TEXT", "ask question N (default: the last) in other words, on a branch of its own"),
    "prev": ("", "show the answer or question before this one, where there are several"),
    "next": ("", "show the one after it"),
    "chats": ("[WORDS]", "list conversations, those that hold the words"),
    "open": ("ID", "go on with a conversation"),
    "title": ("TEXT", "give this conversation another title"),
    "set": ("[NAME VALUE]", "temperature, top_k, top_p, min_p, repetition_penalty, seed, max_new_tokens; off unsets"),
    "system": ("[TEXT]", "a system prompt for the conversations that begin from now on; none unsets"),
    "model": ("[NAME]", "go on with another model; without a name, the list of them"),
    "theme": ("[NAME]", "dark, light or another theme; without a name, the list of them"),
    "editor": ("[TEXT]", "write in $VISUAL or $EDITOR"),
    "raw": ("", "the conversation as the model sees it, with special tokens (of a server: what is sent)"),
    "quit": ("", "leave"),
}
"""Name to its arguments and what it does. `exit` is another word for quit."""

NUMBERS = {
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "min_p": float,
    "repetition_penalty": float,
    "seed": int,
    "max_new_tokens": int,
}
MAX_LISTED = 20


class Models(Protocol):
    """The models that can be talked to."""

    def list_names(self) -> list[str]:
        """Their names, as `open` takes them. May take a while. Raises NanochatError."""
        ...

    def known_names(self) -> Sequence[str]:
        """Those that are known without asking anybody."""
        ...

    def open(self, name: str, session: Any) -> Any:
        """A session with another model, with the numbers and the system prompt of this one. Raises NanochatError.

        Its notice is what should be known of the model."""
        ...


@dataclass(frozen=True)
class Outcome:
    """note: to be said. is_other: the conversation on the screen is another one now.

    pieces: an answer to be shown, to the question `text`, which stands in place of turn `turn` and all that followed.
    work: what takes a while and gives another outcome; its beginning is `note`. theme: a name, or "" for the list.
    draft: what to open the editor with.
    """

    note: str = ""
    pieces: Iterator[Piece] | None = None
    turn: int = 0
    text: str = ""
    is_other: bool = False
    quits: bool = False
    work: Callable[[], "Outcome"] | None = None
    theme: str | None = None
    draft: str | None = None


def parse_command(line: str) -> tuple[str, str] | None:
    """The name and the rest of a command; None where the line is no command. `//x` is the text `/x`.

    Raises UsageError for a command that is not there.

    >>> parse_command("/set top_k 5"), parse_command("/etc/hosts is a file"), parse_command("//new")
    (('set', 'top_k 5'), None, None)
    """
    found = re.match(r"/([a-zA-Z][\w-]*)(?:\s+|$)(.*)", line.strip(), re.DOTALL)
    if found is None:
        return None
    name, rest = found[1], found[2].strip()
    name = "quit" if name == "exit" else name
    if name in COMMANDS:
        return name, rest
    near = difflib.get_close_matches(name.lower(), COMMANDS, n=1, cutoff=0.7)
    guess = f"; did you mean /{near[0]}?" if near else ""
    raise UsageError(f"there is no /{name}{guess}", f"//{name} sends it as text")


def as_text(line: str) -> str:
    """What a line says that is no command."""
    return line[1:] if line.startswith("//") else line


def describe_commands(width: int = 1000) -> str:
    """What each command does."""
    return format_pairs([(f"/{name} {words}".rstrip(), what) for name, (words, what) in COMMANDS.items()], width)


def format_pairs(pairs: Sequence[tuple[str, str]], width: int = 1000) -> str:
    """Two columns, or where the width is too small for them the second below the first.

    >>> print(format_pairs([("/new", "another one"), ("/quit", "leave")], 40))
    /new   another one
    /quit  leave
    """
    first = max(len(head) for head, _ in pairs)
    indent = first + 2 if width - first >= 30 else 2
    lines = []
    for head, what in pairs:
        rest = textwrap.wrap(what, max(10, width - indent), break_long_words=False)
        if indent == 2:
            lines += [head, *(f"  {line}" for line in rest)]
        else:
            lines += [f"{'' if place else head:<{first}}  {line}" for place, line in enumerate(rest)]
    return "\n".join(lines)


def run_command(recorder: Recorder, name: str, rest: str, models: Models | None = None) -> Outcome:
    """Do what a command says. Raises NanochatError where it cannot be done. models: None where there is only one."""
    session = recorder.session
    if name == "help":
        return Outcome(describe_commands())
    if name == "quit":
        return Outcome(quits=True)
    if name == "new":
        recorder.new()
        return Outcome("New conversation.", is_other=True)
    if name == "again":
        if not session.history.messages:
            return Outcome("There is nothing to answer again.")
        turn = len(session.history.messages) // 2 - 1
        return Outcome(pieces=recorder.regenerate(), turn=turn, text=session.history.messages[-2].text)
    if name == "edit":
        return _edit(recorder, rest)
    if name in ("prev", "next"):
        return step_branch(recorder, 1 if name == "next" else -1)
    if name == "chats":
        return _list_chats(recorder, rest)
    if name == "open":
        if recorder.store is None:
            raise UsageError("nothing is kept in this conversation", "nanochat chat  # without --no-history")
        recorder.open(rest or "latest")
        return Outcome(is_other=True)
    if name == "title":
        if recorder.store is None or recorder.chat is None:
            raise UsageError("this conversation is not kept yet", "ask something first")
        recorder.store.rename(recorder.chat, rest)
        return Outcome("Renamed.")
    if name == "set":
        return _set(recorder, rest)
    if name == "model":
        return _switch(recorder, rest, models)
    if name == "theme":
        return Outcome(theme=rest)
    if name == "editor":
        return Outcome(draft=rest)
    if name == "system":
        recorder.set_system(rest)
        begins = "; this one keeps its own" if session.history.messages else ""
        what = "have this system prompt" if rest else "have no system prompt"
        return Outcome(f"Conversations that begin from now on {what}{begins}.")
    return Outcome(session.raw() or "Nothing has been said yet.")


def step_branch(recorder: Recorder, step: int, turn: int | None = None) -> Outcome:
    """Show a sibling of the newest message that has some, or of a turn."""
    path = recorder.path if turn is None else recorder.path[2 * turn : 2 * turn + 2]
    forks = [stored for stored in path if len(stored.siblings) > 1]
    if not forks:
        return Outcome("There is only one branch here." if recorder.store else "Branches are not kept here.")
    fork = forks[-1]
    place = fork.siblings.index(fork.id) + step
    if not 0 <= place < len(fork.siblings):
        return Outcome(f"This is {place - step + 1} of {len(fork.siblings)}.")
    recorder.choose(fork.siblings[place])
    return Outcome(f"{place + 1} of {len(fork.siblings)}.", is_other=True)


def optional_numbers(params: Any) -> list[str]:
    """Those that may be off; a server's may all be, and are its own then."""
    return [field.name for field in fields(params) if field.name in NUMBERS and field.default is None]


def set_number(recorder: Recorder, name: str, value: str) -> None:
    """Change one sampling parameter of the answers from now on. Raises UsageError."""
    if name not in NUMBERS:
        near = difflib.get_close_matches(name, NUMBERS, n=1)
        guess = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(f"there is no parameter {name!r}{guess}", f"one of {', '.join(NUMBERS)}")
    is_off = value in ("off", "") and name in optional_numbers(recorder.session.params)
    try:
        number: Any = None if is_off else NUMBERS[name](value)
        recorder.session.params = replace(recorder.session.params, **{name: number})
    except ValueError as error:
        said = f"{error}" if f"{error}".startswith(name) else f"{name}: {value!r} is no number"
        raise UsageError(said, f"/set {name} {_show(getattr(recorder.session.params, name))}") from error


def explain(error: NanochatError) -> str:
    """An error in one line."""
    return f"{error.message} ({error.hint})" if error.hint else error.message


def _edit(recorder: Recorder, rest: str) -> Outcome:
    num_turns = len(recorder.session.history.messages) // 2
    found = re.fullmatch(r"#(\d+)(?:\s+(.*))?", rest, re.DOTALL)
    turn, text = (int(found[1]), found[2] or "") if found else (num_turns, rest)
    if not num_turns or not text:
        raise UsageError("there is nothing to edit" if not num_turns else "the new text is missing", "/edit TEXT")
    if not 1 <= turn <= num_turns:
        raise UsageError(f"there is no question {turn}, but 1 to {num_turns}", "/edit #1 TEXT")
    return Outcome(pieces=recorder.edit(turn - 1, text), turn=turn - 1, text=text)


def _list_chats(recorder: Recorder, words: str) -> Outcome:
    if recorder.store is None:
        raise UsageError("nothing is kept in this conversation", "nanochat chat  # without --no-history")
    found = recorder.store.list(words, MAX_LISTED)
    return Outcome("\n".join(f"{info.id}  {info.title}" for info in found) or "No conversation.")


def _set(recorder: Recorder, rest: str) -> Outcome:
    name, _, value = rest.partition(" ")
    if rest:
        set_number(recorder, name, value.strip())
    params = recorder.session.params
    shown = {key: getattr(params, key) for key in NUMBERS}
    return Outcome(", ".join(f"{key} {_show(value)}" for key, value in shown.items()))


def _show(value: Any) -> str:
    return "off" if value is None else f"{value}"


def _switch(recorder: Recorder, name: str, models: Models | None) -> Outcome:
    if models is None:
        raise UsageError("there is only this model here", "nanochat chat MODEL")

    def list_all() -> Outcome:
        assert models is not None
        current = recorder.session.name
        names = [f"{'*' if name == current else ' '} {name}" for name in models.list_names()]
        return Outcome("\n".join([*names, "/model NAME goes on with another one."]))

    def switch() -> Outcome:
        assert models is not None
        old = recorder.session
        new = models.open(name, old)
        said = f"{new.name} answers from now on. {new.notice}".rstrip()
        new.load(old.history)
        recorder.session = new
        return Outcome(said)

    return Outcome(work=switch if name else list_all, note=f"Loading {name}." if name else "")


def write_turns(recorder: Recorder) -> str:
    """The conversation on the screen as text."""
    lines = []
    for message in recorder.session.history.messages:
        lines.append(f"> {message.text}" if message.role == "user" else write_parts(message.parts))
    return "\n".join(lines)
