"""The `nanochat` command: its groups, and the boundary where errors become sentences and exit codes."""

import errno
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated

import typer

from nanochat import __version__
from nanochat.cli import (
    chat,
    chats,
    config,
    data,
    doctor,
    download,
    eval,
    export,
    identity,
    plan,
    presets,
    report,
    resume,
    rl,
    run,
    runs,
    serve,
    tokenize,
    train,
)
from nanochat.cli.console import Console, count_escaped, prepare_streams
from nanochat.cli.options import complete_hint, move_global_options, new_group
from nanochat.errors import NanochatError
from nanochat.files import FAILING
from nanochat.machine import end_at_third_interrupt

EXIT_USAGE, EXIT_DATA, EXIT_CAPACITY, EXIT_INTERRUPTED = 2, 4, 5, 130
REFUSED = (*FAILING, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
"""What the system says of a path of the user's, wherever it is met."""

app = new_group("Train a ChatGPT-like model end to end, from raw text to a chat window.")
run.register(app)
app.add_typer(download.app, name="download")
app.add_typer(tokenize.app, name="tokenize")
app.add_typer(train.app, name="train")
resume.register(app)
app.add_typer(rl.app, name="rl")
app.add_typer(eval.app, name="eval")
chat.register(app)
app.add_typer(chats.app, name="chats")
serve.register(app)
app.add_typer(export.app, name="export")
report.register(app)
plan.register(app)
app.add_typer(runs.app, name="runs")
app.add_typer(presets.app, name="presets")
app.add_typer(config.app, name="config")
app.add_typer(data.app, name="data")
app.add_typer(identity.app, name="identity")
doctor.register(app)


@app.callback(epilog="Example: nanochat run --preset demo")
def root(
    version: Annotated[bool, typer.Option("--version", help="Show the version.", is_eager=True)] = False,
) -> None:
    """Train a ChatGPT-like model end to end, from raw text to a chat window."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code. What is a bug of ours keeps its traceback."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    console = Console(color="--no-color" not in words)
    prepare_streams()
    if arguments is None:  # the process is ours
        with suppress(RuntimeError):  # no more threads for this user: what needs one says so
            end_at_third_interrupt()
        signal.signal(
            signal.SIGTERM, signal.default_int_handler
        )  # what Ctrl-C tidies up, a scheduler's request does too
    try:
        return _run(words, console)
    finally:
        if (number := count_escaped()) and "--json" not in words:
            console.say(
                f"standard output takes {sys.stdout.encoding} only: {number:,} characters are written as escapes. "
                "For all of them: export PYTHONIOENCODING=utf-8"
            )


def _run(words: list[str], console: Console) -> int:
    if words == ["--version"]:
        console.show(f"nanochat {__version__}")
        return 0
    try:
        code = app(move_global_options(words), prog_name="nanochat", standalone_mode=False)
        sys.stdout.flush()
        return int(code or 0)
    except NanochatError as error:
        if "--debug" in words:
            traceback.print_exc()
        console.fail(error.message, complete_hint(error.hint, words))
        return error.exit_code
    except typer.Exit as error:
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return EXIT_INTERRUPTED
    except typer.TyperException as error:
        return _explain_usage(console, error, words)
    except MemoryError:
        console.fail("out of memory", "nanochat plan  # shows what a run needs")
        return EXIT_CAPACITY
    except BrokenPipeError:  # `nanochat runs ls | head`
        return _ignore_broken_pipe()
    except SystemExit as leaving:  # what the parser turns a broken pipe into
        if not isinstance(leaving.__context__, OSError) or leaving.__context__.errno != errno.EPIPE:
            raise
        return _ignore_broken_pipe()
    except RuntimeError as error:
        if "can't start new thread" in str(error):
            console.fail(
                "the system lets this user start no more threads", "ulimit -u  # processes and threads of a user"
            )
            return EXIT_CAPACITY
        if "home directory" not in str(error):  # of Path.expanduser
            raise
        console.fail("a path begins with ~, and the home folder is not known", "write the whole path")
        return EXIT_USAGE
    except OSError as error:
        if error.errno == errno.ENOENT and not _is_somewhere():
            console.fail("the current folder is not there any more", "cd  # into one that is; then the same command")
            return EXIT_USAGE
        if "temporary directory" in str(error):
            console.fail("no folder for temporary files can be written", "export TMPDIR=DIR")
            return EXIT_CAPACITY
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            console.fail(f"the disk is full: {error.filename or ''}".rstrip(": "), "nanochat runs rm RUN")
            return EXIT_CAPACITY
        if error.errno not in REFUSED or not error.filename or "--debug" in words:
            raise
        console.fail(f"{error.filename}: {error.strerror}", f"ls -ld {shlex.quote(os.fsdecode(error.filename))}")
        return EXIT_DATA


def _is_somewhere() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


def _ignore_broken_pipe() -> int:
    """Let the interpreter's own flush at exit go nowhere; the reader had what it wanted."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _explain_usage(console: Console, error: typer.TyperException, words: list[str]) -> int:
    message = error.format_message() if hasattr(error, "format_message") else str(error)  # type: ignore[attr-defined]
    if type(error).__name__ == "NoArgsIsHelpError":
        console.show(message)
        return 0 if not words else EXIT_USAGE
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "nanochat"
    sentence = message[:1].lower() + message[1:].rstrip(".")
    console.fail(sentence, f"{path} --help")
    return EXIT_USAGE


if __name__ == "__main__":
    sys.exit(main())
