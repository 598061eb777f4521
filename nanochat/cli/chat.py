"""`nanochat chat`: the full-screen chat, a plain prompt loop, or one answer."""

import sys
from typing import Annotated, Any

import typer

from nanochat.chats.recorder import Recorder
from nanochat.cli.chats import open_store
from nanochat.cli.options import Invocation, check_utf8, command, read_utf8
from nanochat.errors import UsageError


def register(app: typer.Typer) -> None:
    command(app, "chat", "nanochat chat demo -p 'How many r are in strawberry?'")(chat)


def chat(
    invocation: Invocation,
    model: Annotated[
        str | None,
        typer.Argument(help="RUN, RUN/sft, RUN/sft@650 or a checkpoint folder; default: the newest model."),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("-p", "--prompt", help="Answer once; text from a pipe is added to it.")
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Lines instead of a full screen.")] = False,
    temperature: Annotated[float | None, typer.Option("--temperature", help="0: always the likeliest token.")] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", help="Only the k likeliest tokens.")] = None,
    top_p: Annotated[float | None, typer.Option("--top-p", help="Only the likeliest tokens up to this sum.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="The same seed gives the same answer.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option("--max-new-tokens", help="Longest answer.")] = None,
    system: Annotated[str, typer.Option("--system", help="Put before the first message.")] = "",
    go_on: Annotated[
        str | None, typer.Option("--continue", metavar="CHAT", help="Go on with a conversation: an id, or latest.")
    ] = None,
    no_history: Annotated[bool, typer.Option("--no-history", help="Keep nothing of this conversation.")] = False,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")] = "auto",
) -> int:
    """Talk to a trained model. Conversations are kept (nanochat chats ls); answers to -p are not."""
    if prompt is not None and not prompt.strip() and sys.stdin.isatty():
        raise UsageError("the prompt is empty", "nanochat chat -p 'Hello'")
    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    sampling = {**sampling, "max_new_tokens": max_new_tokens}
    check_sampling(sampling)
    if go_on is not None and (no_history or prompt is not None or invocation.as_json):
        raise UsageError(
            "--continue goes with a kept conversation, not with -p, --json or --no-history", "nanochat chat"
        )
    found = invocation.workspace.resolve_model(model)
    store = None
    if not no_history and prompt is None and not invocation.as_json and not invocation.dry_run:
        store = open_store(invocation)
        go_on = None if go_on is None else store.find(go_on).id
    if found.stage == "base":
        invocation.console.say(f"{found} is a base model: it continues text and has not learned to chat")
    invocation.console.say(f"model {found}")
    if invocation.dry_run:
        return 0
    session = open_session(found, device, {key: value for key, value in sampling.items() if value is not None}, system)
    if prompt is not None or invocation.as_json:
        answer_once(invocation, session, prompt or "")
        return 0
    return talk(invocation, Recorder(session, store, go_on), plain)


def talk(invocation: Invocation, recorder: Recorder, plain: bool) -> int:
    """Choose the face: lines, or the full screen on a terminal."""
    console = invocation.console
    if plain or not (sys.stdin.isatty() and sys.stdout.isatty()):
        from nanochat.tui.plain import run_plain

        is_terminal = sys.stdin.isatty()
        return run_plain(recorder, input if is_terminal else _read_line, console.write, console.say)
    from nanochat.tui.app import ChatApp

    ChatApp(recorder, invocation.home / "chats").run()
    return 0


def answer_once(invocation: Invocation, session: Any, prompt: str) -> None:
    """One answer to the prompt and what comes through a pipe, as text or as JSON."""
    from nanochat.tui.plain import join_prompt, write_answer

    text = check_utf8(join_prompt(prompt, "" if sys.stdin.isatty() else _read_pipe()))
    if not text:
        raise UsageError("the prompt is empty", "nanochat chat -p 'Hello'")
    if invocation.as_json:
        for _ in session.send(text):
            pass
        invocation.console.show_json(session.export() | {"finish": session.finish})
    else:
        write_answer(session.send(text), invocation.console.write)
    if session.notice:
        invocation.console.say(session.notice)


def open_session(model: Any, device: str, sampling: dict[str, Any], system: str) -> Any:
    """Load the model, with the chat's own sampling where none is given. This is where torch is imported."""
    from dataclasses import replace

    from nanochat.engine.session import CHAT_SAMPLING
    from nanochat.runtime import use_all_cores
    from nanochat.stages.assemble import build_session

    use_all_cores()
    return build_session(model, device, params=replace(CHAT_SAMPLING, **sampling), system=system)


def check_sampling(sampling: dict[str, Any]) -> None:
    """Raise UsageError for a number out of its range, before torch is imported."""
    bounds = {
        "temperature": (lambda x: 0 <= x < float("inf"), "0 or more"),
        "top_k": (lambda x: x >= 1, "1 or more"),
        "top_p": (lambda x: 0 < x <= 1, "in (0, 1]"),
        "seed": (lambda x: 0 <= x < 2**63, "in [0, 2^63)"),
        "max_new_tokens": (lambda x: x >= 1, "1 or more"),
    }
    for name, (is_good, expected) in bounds.items():
        if sampling[name] is not None and not is_good(sampling[name]):
            raise UsageError(f"--{name.replace('_', '-')} {sampling[name]} is not {expected}", "nanochat chat --help")


def _read_line(_prompt: str) -> str:
    line = read_utf8(sys.stdin.readline)
    if not line:
        raise EOFError
    return line


def _read_pipe() -> str:
    try:
        return read_utf8(sys.stdin.read)
    except (OSError, ValueError):  # closed, as under some schedulers
        return ""
