"""`nanochat data check`: what a file of conversations becomes, before anything is trained on it."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nanochat.cli.console import format_table
from nanochat.cli.options import Invocation, Preset, RunName, command, new_group
from nanochat.cli.target import choose_run, choose_target, has_started, is_done, name_copy, suggest_copy
from nanochat.errors import DataError, UsageError
from nanochat.text import plain_text

if TYPE_CHECKING:
    from nanochat.tasks.check import FileCheck
    from nanochat.tokenizer.bpe import Tokenizer

GREEN, RESET = "\x1b[32m", "\x1b[0m"
SHOWN_LINES = 10

app = new_group("Check conversations of your own.")


@command(app, "check", "nanochat data check mine.jsonl --run demo")
def check(
    invocation: Invocation,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="JSONL, one conversation a line, or a JSON array; also of ShareGPT or Alpaca."
        ),
    ],
    run: RunName = None,
    preset: Preset = None,
) -> int:
    """Say what is wrong with each conversation, how long conversations are, and show what the model learns to say."""
    from nanochat.tasks.check import check_file

    file = file.expanduser()
    tokenizer, context, overlong = find_tokenizer(invocation, run, preset)
    unit = "tokens" if tokenizer.merges else "bytes"
    result = check_file(file, tokenizer, context if tokenizer.merges else None)
    if not result.errors and not result.measured:
        raise DataError(f"{file} has no conversations", 'one {"messages": [...]} a line')
    if invocation.as_json:
        invocation.console.show_json(to_json(file, result, unit, context))
    else:
        show(invocation, file, result, unit, context, overlong)
    if result.errors:
        num_all = len(result.errors) + len(result.measured)
        raise DataError(
            f"{file}: {len(result.errors)} of {num_all} {result.unit}s cannot be read", result.errors[0].hint
        )
    wish = shlex.join(["--set", f"sft.mixture=custom:{file}"])
    following = f"nanochat run --preset {preset or 'd20'} {wish}"
    if run is not None:
        paths = invocation.workspace.run(run)
        following = f"nanochat run --run {run} {wish}"
        if has_started(paths, "sft"):
            following = suggest_copy(paths, "sft", f"nanochat run --run {name_copy(paths)} {wish}")
    invocation.console.suggest(following)
    return 0


def find_tokenizer(invocation: Invocation, run: str | None, preset: str | None) -> "tuple[Tokenizer, int | None, str]":
    """The tokenizer, the context and the rule for long conversations of a run; bytes where none is trained."""
    from nanochat.config.settings import GPT4_STYLE_PATTERN
    from nanochat.tokenizer.bpe import Tokenizer, load_tokenizer

    if run is not None and preset is not None:
        raise UsageError("--run and --preset both say what the file is for: choose one", f"--run {run}")
    context, overlong, paths = None, "truncate", None
    if preset is None and run is None and invocation.workspace.list_runs():
        run = choose_run(invocation, None).name
    if preset is not None or run is not None:
        target = choose_target(invocation, preset, run=run)
        context, overlong, paths = target.settings.model.context, target.settings.sft.overlong, target.run
    if paths is not None and is_done(paths, "tokenizer"):
        return load_tokenizer(paths.tokenizer), context, overlong
    if run is not None and paths is not None:
        invocation.console.say(f"run {run} has no tokenizer yet: lengths are in bytes, and none is called too long")
    else:
        invocation.console.say("without a trained tokenizer lengths are in bytes, and none is called too long")
    return Tokenizer([], GPT4_STYLE_PATTERN), context, overlong


def show(
    invocation: Invocation, file: Path, result: "FileCheck", unit: str, context: int | None, overlong: str
) -> None:
    """Facts, errors and samples for people."""
    from nanochat.tasks.check import mark_pieces

    console = invocation.console
    for error in result.errors:
        console.show(plain_text(error.message))
    rows = [
        ("file", str(file)),
        ("read as", result.format),
        ("conversations", f"{len(result.measured):,}"),
        ("errors", f"{len(result.errors):,}"),
    ]
    if result.measured:
        longest = result.longest()
        rows += [
            (unit, f"{result.num_tokens:,}"),
            (
                "lengths",
                f"half up to {result.length(0.5):,}, nine tenths up to {result.length(0.9):,}, "
                f"the longest {longest.num_tokens:,} ({result.unit} {longest.number})",
            ),
            ("trained", f"{result.trained_share:.1%} of the {unit}"),
            ("masked", describe_masked(result.num_masked, result.num_answers)),
            ("validation", result.validation),
        ]
        if unit == "tokens":
            rows.append(("too long", describe_too_long(result.too_long, context, overlong, result.unit)))
    console.show(format_table(rows))
    colored = invocation.color and sys.stdout.isatty()
    marks = (GREEN, RESET) if colored else ("[", "]")
    for number, pieces in result.samples:
        console.show(f"\n{result.unit} {number}, what is learnt {'in green' if colored else 'in brackets'}:")
        console.show(mark_pieces([(plain_text(text), learnt) for text, learnt in pieces], *marks))


def describe_masked(num_masked: int, num_answers: int) -> str:
    if not num_masked:
        return f"none of {num_answers:,} answers"
    return f"{num_masked:,} of {num_answers:,} answers are not learnt (weight 0 or train false)"


def describe_too_long(numbers: tuple[int, ...], context: int | None, overlong: str, unit: str = "line") -> str:
    """`2 for a context of 256 (overlong = truncate): lines 3, 9`"""
    if not numbers:
        return f"none for a context of {context:,}"
    shown = ", ".join(map(str, numbers[:SHOWN_LINES])) + (", ..." if len(numbers) > SHOWN_LINES else "")
    return f"{len(numbers):,} for a context of {context:,} (overlong = {overlong}): {unit}s {shown}"


def to_json(file: Path, result: "FileCheck", unit: str, context: int | None) -> dict[str, Any]:
    lengths = None
    if result.measured:
        lengths = {"median": result.length(0.5), "p90": result.length(0.9), "longest": result.longest().num_tokens}
    return {
        "file": str(file),
        "conversations": len(result.measured),
        "errors": [error.message for error in result.errors],
        "unit": unit,
        "total": result.num_tokens,
        "lengths": lengths,
        "trained_share": result.trained_share,
        "format": result.format,
        "answers": result.num_answers,
        "masked_answers": result.num_masked,
        "held_out": result.num_held_out,
        "numbers_count": result.unit + "s",
        "context": context,
        "too_long_lines": list(result.too_long),
    }
