"""`nanochat chats`: the conversations that `chat` keeps."""

import sys
import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from nanochat.chat.export import STDIN, count_whole, describe_end, export_chat, parse_chats, write_parts
from nanochat.chat.store import ChatInfo, ChatStore
from nanochat.cli.console import format_table
from nanochat.cli.options import Invocation, command, new_group, read_utf8
from nanochat.errors import DataError, MissingError, UsageError
from nanochat.text import plain_text

app = new_group("Conversations: list, show, export, import, rename, remove.")
Chat = Annotated[str, typer.Argument(help="The beginning of an id, or latest.")]


def open_store(invocation: Invocation) -> ChatStore:
    return ChatStore(invocation.workspace.chats)


@command(app, "ls", "nanochat chats ls --search ducks")
def list_chats(
    invocation: Invocation,
    search: Annotated[str, typer.Option("--search", help="Only those that hold these words.")] = "",
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many, the newest.")] = 50,
) -> None:
    """List conversations, the newest first."""
    found = open_store(invocation).list(search, limit + 1)
    if invocation.as_json:
        invocation.console.show_json([vars(info) for info in found[:limit]])
        return
    if not found:
        what = f"no conversation holds {search!r}" if search else "no conversations yet; next:  nanochat chat"
        invocation.console.say(what)
        return
    rows = [
        (
            info.id,
            time.strftime("%Y-%m-%d %H:%M", time.localtime(info.updated)),
            info.num_messages,
            plain_text(info.title),
        )
        for info in found[:limit]
    ]
    invocation.console.show(format_table(rows, ("id", "changed", "messages", "title"), right=[2]))
    if len(found) > limit:
        invocation.console.say(f"the newest {limit} are shown; --limit shows more, --search finds older ones")


@command(app, "show", "nanochat chats show latest")
def show(invocation: Invocation, chat: Chat) -> None:
    """Print a conversation, its current branch."""
    store = open_store(invocation)
    info = store.find(chat)
    path = store.read(info.id)
    if invocation.as_json:
        invocation.console.show(export_chat(info, path, "json").rstrip())
        return
    for stored in path:
        who = "you" if stored.message.role == "user" else stored.model or "assistant"
        branches = (
            f"  ({stored.siblings.index(stored.id) + 1}/{len(stored.siblings)})" if len(stored.siblings) > 1 else ""
        )
        end = describe_end(stored)
        said = write_parts(stored.message.parts) + (f"\n({end})" if end else "")
        invocation.console.show(plain_text(f"{who}{branches}\n{said}\n"))


@command(app, "export", "nanochat chats export latest --format jsonl >> good.jsonl")
def export(
    invocation: Invocation,
    chat: Chat,
    form: Annotated[
        Literal["markdown", "json", "jsonl"],
        typer.Option("--format", help="jsonl: a training example, for data check and sft."),
    ] = "markdown",
    out: Annotated[Path | None, typer.Option("--out", help="A file, which must not exist; default: stdout.")] = None,
) -> None:
    """Write a conversation, its current branch."""
    store = open_store(invocation)
    info = store.find(chat)
    path = store.read(info.id)
    text = export_chat(info, path, form)
    if form == "jsonl" and count_whole(path) < len(path):
        invocation.console.say(
            f"{len(path) - count_whole(path)} messages left out, from a question whose answer was cut or empty"
        )
    if out is None:
        invocation.console.show(text.rstrip("\n"))
        return
    if invocation.dry_run and not out.exists():
        invocation.would(f"write {out}")
        return
    try:
        with out.open("x", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(f"{out} exists already", f"nanochat chats export {info.id} --out {out}.new") from None
    except OSError as error:
        raise DataError(f"cannot write {out}: {error.strerror}", "choose another --out") from error
    invocation.console.say(f"wrote {out}")


@command(app, "import", "nanochat chats import chats.jsonl")
def import_file(
    invocation: Invocation, file: Annotated[Path, typer.Argument(help="JSON, or a conversation a line; - for stdin.")]
) -> None:
    """Take in conversations that were exported, or that follow the form of training data."""
    is_pipe = str(file) == "-"
    name = STDIN if is_pipe else str(file)
    try:
        text = read_utf8(sys.stdin.read) if is_pipe else file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file} is not UTF-8: {error.reason} at byte {error.start}", "iconv -f latin1 -t utf-8 FILE"
        ) from error
    except FileNotFoundError:
        raise MissingError(f"there is no file {file}", "nanochat chats import FILE") from None
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}", "nanochat chats import FILE") from error
    found = parse_chats(text, name)
    if invocation.dry_run:
        invocation.would(f"take in {len(found)} conversation{'s' if len(found) > 1 else ''}")
        return
    store = open_store(invocation)
    ids = store.load_all(chat.stored for chat in found)
    if invocation.as_json:
        invocation.console.show_json(list(ids))
    else:
        invocation.console.say(
            f"took in {len(ids)} conversation{'s' if len(ids) > 1 else ''}; next:  nanochat chats ls"
        )


@command(app, "rename", "nanochat chats rename latest 'About ducks'")
def rename(invocation: Invocation, chat: Chat, title: Annotated[str, typer.Argument(help="The new title.")]) -> None:
    """Give a conversation another title."""
    store = open_store(invocation)
    info = store.find(chat)
    if invocation.dry_run:
        invocation.would(f"rename {info.id} ({plain_text(info.title)})")
        return
    store.rename(info.id, title)


@command(app, "rm", "nanochat chats rm 3f2a")
def remove(invocation: Invocation, chats: Annotated[list[str], typer.Argument(help="Beginnings of ids.")]) -> None:
    """Remove conversations with all of their branches."""
    store = open_store(invocation)
    found: dict[str, ChatInfo] = {info.id: info for info in map(store.find, chats)}
    titles = ", ".join(f"{info.id} ({plain_text(info.title)})" for info in found.values())
    if invocation.dry_run:
        invocation.would(f"remove {titles}")
        return
    if not invocation.yes:
        if not sys.stdin.isatty():
            raise UsageError(f"removing {titles} needs a yes", f"nanochat chats rm {' '.join(found)} -y")
        if not invocation.console.ask(f"remove {titles}?"):
            invocation.console.say("nothing was removed")
            return
    for chat in found:
        store.delete(chat)
    invocation.console.say(f"removed {titles}")
