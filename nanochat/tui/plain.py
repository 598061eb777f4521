"""Chat through lines of text: a prompt loop and a one-shot answer. Reads and writes only what it is given."""

from collections.abc import Callable, Iterable
from typing import Any

from nanochat.chat.decoding import Piece
from nanochat.chat.recorder import Recorder
from nanochat.errors import NanochatError, UsageError
from nanochat.text import plain_text
from nanochat.tui.commands import Models, Outcome, as_text, explain, parse_command, run_command, write_turns

PROMPT = "> "
ABOUT_TURNS = ("again", "edit", "prev", "next")
"""Commands that must know the conversation as it is now."""
Write = Callable[[str], object]


def run_plain(
    recorder: Recorder,
    read: Callable[[str], str],
    write: Write,
    note: Write,
    models: Models | None = None,
    edit: Callable[[str], str] | None = None,
    is_script: bool = False,
) -> int:
    """Talk until the input ends; return the exit code: 0, but of a script whose lines failed that of the last error.

    read: like input(): takes the prompt, returns a line, raises EOFError at the end. write: answers, streamed
    and flushed. note: one line about the conversation, such as help or an error. edit: opens an editor with a text and
    returns what became of it; None without a terminal. is_script: nobody is there to see what failed. Ctrl-C stops an
    answer and keeps its beginning; where no answer is running it ends the loop.
    """
    num_lines = num_failed = code = 0
    while True:
        try:
            line = read(PROMPT).strip()
        except (EOFError, KeyboardInterrupt):
            write("\n")
            break
        if not line:
            continue
        num_lines += 1
        recorder.session.notice = ""
        try:
            command = parse_command(line)
            if (command is None or command[0] in ABOUT_TURNS) and recorder.catch_up():
                if recorder.chat is None:
                    note("The conversation was deleted in another program; a new one begins.")
                else:
                    note("The conversation went on in another program; it is now:")
                    write(plain_text(write_turns(recorder)) + "\n")
            if command is None:
                write_answer(recorder.send(as_text(line)), write)
            else:
                outcome = run_command(recorder, *command, models)
                if outcome.quits:
                    break
                _follow(recorder, outcome, write, note, edit)
        except KeyboardInterrupt:
            write("\n")
            note("Stopped.")
        except NanochatError as error:
            note(explain(error))
            num_failed, code = num_failed + 1, error.exit_code
        if recorder.session.notice:
            note(recorder.session.notice)
    if not is_script or not num_failed:
        return 0
    note(f"{num_failed} of {num_lines} lines failed; the exit code {code} is that of the last of them.")
    return code


def _follow(recorder: Recorder, outcome: Outcome, write: Write, note: Write, edit: Callable[[str], str] | None) -> None:
    """Show what a command did."""
    if outcome.draft is not None:
        if edit is None:
            raise UsageError("an editor needs a terminal", "write the question on a line of its own")
        if text := edit(outcome.draft).strip():
            note(plain_text(text))
            write_answer(recorder.send(text), write)
        return
    if outcome.theme is not None:
        note("Lines have no theme.")
    if outcome.pieces is not None:
        write_answer(outcome.pieces, write)
    elif outcome.is_other and recorder.session.history.messages:
        write(plain_text(write_turns(recorder)) + "\n")
    if outcome.note:
        note(plain_text(outcome.note))
    if outcome.work is not None:
        _follow(recorder, outcome.work(), write, note, edit)


def answer_once(session: Any, prompt: str, piped: str, write: Write, note: Write) -> None:
    """Answer one prompt, with text that came through a pipe below it; raises UsageError where it does not fit."""
    write_answer(session.send(join_prompt(prompt, piped)), write)
    if session.notice:
        note(session.notice)


def join_prompt(prompt: str, piped: str) -> str:
    """ "Summarise:", "a text\\n" -> "Summarise:\\n\\na text"; either may be empty."""
    return "\n\n".join(part for part in (prompt.strip(), piped.strip()) if part)


def write_answer(pieces: Iterable[Piece], write: Write) -> None:
    """Stream pieces, tool calls as `[2+2 = 4]` (refused ones as `[2+]`), and end with a line break, also what an error
    cuts off."""
    call, last = None, ""
    try:
        for piece in pieces:
            if piece.kind == "python_output":
                last = f"[{call or ''} = {piece.text}]"
                call = None
            else:
                if call is not None:
                    write(f"[{call}]")
                    call = None
                if piece.kind == "python":
                    call = piece.text
                    continue
                last = piece.text
            write(last)
    except NanochatError:
        if last:
            write("\n")
        raise
    if call is not None:
        write(f"[{call}]")
        last = call
    if not last.endswith("\n"):
        write("\n")
