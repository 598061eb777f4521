"""`nanochat identity init`: conversations that teach a model its name."""

import json
from pathlib import Path
from typing import Annotated

import typer

from nanochat.cli.options import Invocation, check_utf8, command, new_group
from nanochat.errors import UsageError
from nanochat.text import CONTROL

app = new_group("Give the model a name of your own.")


@command(app, "init", 'nanochat identity init --name Ada --maker "Jane Doe"')
def init(
    invocation: Invocation,
    name: Annotated[str, typer.Option("--name", help="What the model calls itself.")],
    maker: Annotated[str, typer.Option("--maker", help="Who it says has made it.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where to write the conversations.")] = Path(
        "identity.jsonl"
    ),
) -> None:
    """Write a JSONL file of questions about the model and its answers; edit it as you like."""
    from nanochat.conversation import dump_conversation
    from nanochat.files import write_atomically
    from nanochat.tasks.identity_file import write_identity

    name, maker, out = check_name("--name", name), check_name("--maker", maker), out.expanduser()
    if out.is_dir():
        raise UsageError(f"{out} is a folder", f"--out {out / 'identity.jsonl'}")
    if out.exists() and not invocation.yes:
        raise UsageError(f"{out} is there already", f"--out {out.with_stem(f'{out.stem}-2')}  # --yes writes over it")
    conversations = write_identity(name, maker)
    if invocation.dry_run:
        invocation.would(f"write {len(conversations)} conversations to {out}")
        return
    lines = [json.dumps(dump_conversation(conversation), ensure_ascii=False) for conversation in conversations]
    write_atomically(out, "\n".join(lines))
    if invocation.as_json:
        invocation.console.show_json({"file": str(out), "conversations": len(conversations)})
    else:
        invocation.console.show(f"{len(conversations)} conversations in {out}")
    invocation.console.suggest(f"nanochat data check {out}")


def check_name(option: str, text: str) -> str:
    """Raises UsageError for a name that is empty or steers a terminal."""
    text = check_utf8(text).strip()
    if not text or "\n" in text or "\t" in text or CONTROL.search(text):
        raise UsageError(f"{option} {text!r} is no name", f"{option} Ada")
    return text
