"""The user's own editor, for a prompt that is longer than a line."""

import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from nanochat.errors import DataError, UsageError
from nanochat.text import plain_text

FALLBACKS = ("nano", "vi")
HINT = "export VISUAL=nano  # or the editor you like, then start the chat again"


def find_editor(environ: Mapping[str, str]) -> list[str]:
    """The words of $VISUAL, of $EDITOR, or an editor that most systems have. Raises UsageError."""
    for name in ("VISUAL", "EDITOR"):
        if wish := environ.get(name, "").strip():
            try:
                words = shlex.split(wish)
            except ValueError as error:
                raise UsageError(f"${name} = {wish!r} cannot be read: {error}", HINT) from None
            if shutil.which(words[0], path=environ.get("PATH")) is None:
                raise UsageError(f"${name} = {wish!r}: there is no program {words[0]!r}", HINT)
            return words
    for program in FALLBACKS:
        if shutil.which(program, path=environ.get("PATH")):
            return [program]
    raise UsageError(f"neither $VISUAL nor $EDITOR is set, and there is no {' and no '.join(FALLBACKS)}", HINT)


def edit_text(command: Sequence[str], text: str) -> str:
    """Let the user change a text; this returns when the editor ends. Raises NanochatError, and nothing is changed then.

    Who calls it has given the terminal back.
    """
    with tempfile.TemporaryDirectory(prefix="nanochat-") as folder:  # with what the editor leaves beside the file
        path = Path(folder) / "prompt.md"
        path.write_text(text, encoding="utf-8")
        # Ctrl-C is the editor's: a handler of ours that does nothing is not handed on to it, as SIG_IGN would be.
        before = signal.signal(signal.SIGINT, lambda *_: None)
        try:
            code = subprocess.run([*command, str(path)], check=False).returncode
        except OSError as error:
            raise UsageError(f"{command[0]} cannot be started: {error.strerror or error}", HINT) from error
        finally:
            signal.signal(signal.SIGINT, before)
        if code:
            raise DataError(f"{command[0]} ended with code {code}; the text is as it was", "try again, or see $VISUAL")
        try:
            return plain_text(path.read_text(encoding="utf-8")).rstrip("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"what {command[0]} wrote cannot be read: {error}", "save it as UTF-8") from error
