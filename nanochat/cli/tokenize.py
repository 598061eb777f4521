"""`nanochat tokenize train | encode | eval`."""

import json
import sys
from typing import Annotated

import typer

from nanochat.cli.console import format_table
from nanochat.cli.options import (
    Config,
    Invocation,
    Overrides,
    Preset,
    RunName,
    check_utf8,
    command,
    new_group,
    read_utf8,
)
from nanochat.cli.target import (
    check_dataset,
    choose_run,
    choose_target,
    is_done,
    read_result,
    warn_of_changed_data,
    write_target,
)
from nanochat.cli.train import describe_result, start
from nanochat.cli.validation import check_settings
from nanochat.errors import UsageError
from nanochat.files import write_atomically

app = new_group("Train a tokenizer, and see what it does to text.")


@command(app, "train", "nanochat tokenize train --preset demo")
def train_tokenizer(
    invocation: Invocation,
    preset: Preset = None,
    config: Config = None,
    overrides: Overrides = None,
    run: RunName = None,
) -> int:
    """Train the run's tokenizer on its pretraining text."""
    target = choose_target(invocation, preset, config, overrides, run)
    if is_done(target.run, "tokenizer"):
        write_target(invocation, target)
        done = describe_result("tokenizer", read_result(target.run, "tokenizer"))
        invocation.console.say(f"{done} of run {target.run.name}: nothing to do")
        warn_of_changed_data(invocation, target, "tokenizer")
    else:
        check_settings(invocation, target.settings, target.origins, 1)
        check_dataset(invocation, target.settings.data.dataset, target.choice)
        again = ("tokenize", "train", "--run", target.run.name)
        code = start("tokenizer", invocation, target, again=again)
        if code or invocation.dry_run:
            return code
    if invocation.as_json:
        invocation.console.show_json(read_result(target.run, "tokenizer"))
    invocation.console.suggest(f"nanochat train base --run {target.run.name}")
    return 0


@command(app, "encode", "nanochat tokenize encode 'How many r are in strawberry?' --run demo")
def encode_text(
    invocation: Invocation,
    text: Annotated[str | None, typer.Argument(help="The text; default: standard input.")] = None,
    run: RunName = None,
) -> None:
    """Show the tokens of a text: id and bytes, one a line."""
    from nanochat.tokenizer.bpe import load_tokenizer

    if text is None and sys.stdin.isatty():
        raise UsageError("there is no text to encode", "nanochat tokenize encode 'some text'")
    paths = choose_run(invocation, run)
    tokenizer = load_tokenizer(paths.tokenizer)
    ids = tokenizer.encode(read_utf8(sys.stdin.read) if text is None else check_utf8(text))
    if invocation.as_json:
        invocation.console.show_json(ids)
        return
    for token in ids:
        piece = tokenizer.decode_bytes([token])
        invocation.console.show(f"{token:>6}  {piece!r}")
    invocation.console.say(f"{len(ids)} tokens")


@command(app, "eval", "nanochat tokenize eval --run demo")
def evaluate_tokenizer(invocation: Invocation, run: RunName = None) -> None:
    """Bytes per token on several kinds of text, beside GPT-2 and GPT-4 where their rank files are at hand."""
    from nanochat.evals.compression import compare_vocabularies
    from nanochat.tokenizer.bpe import load_tokenizer

    paths = choose_run(invocation, run)
    tokenizer = load_tokenizer(paths.tokenizer)
    found, missing = compare_vocabularies(paths.name, tokenizer.encode, invocation.workspace.ranks)
    for line in missing:
        invocation.console.say(line)
    write_atomically(paths.compression, json.dumps(found, indent=1) + "\n")
    if invocation.as_json:
        invocation.console.show_json(found["kinds"])
        return
    names = list(found["kinds"][0]["bytes_per_token"])
    rows = [
        (item["kind"], f"{item['bytes']:,}", *(f"{item['bytes_per_token'][name]:.2f}" for name in names))
        for item in found["kinds"]
    ]
    invocation.console.show(format_table(rows, ("bytes per token", "bytes", *names), range(1, len(names) + 2)))
