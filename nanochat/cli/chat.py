"""`nanochat chat`: the full-screen chat, a plain prompt loop, or one answer."""

import sys
from typing import Annotated, Any

import typer

from nanochat.chat.recorder import Recorder
from nanochat.cli.chats import open_store
from nanochat.cli.options import Invocation, check_utf8, command, read_utf8
from nanochat.cli.sessions import BASE_NOTICE, KEY_VARIABLE, LocalModels, open_local, open_remote
from nanochat.engine.bounds import BOUNDS
from nanochat.errors import UsageError
from nanochat.launch.launch import read_environ, switch_colors_off
from nanochat.tui.commands import Models
from nanochat.tui.editor import edit_text, find_editor
from nanochat.tui.preferences import Preferences, read_preferences


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
    url: Annotated[
        str | None, typer.Option("--url", help="Talk to a server (nanochat serve, or any OpenAI-compatible one).")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option("--api-key", help=f"What the server wants; better in ${KEY_VARIABLE}.")
    ] = None,
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
    if url is None and api_key is not None:
        raise UsageError("--api-key is for a server", "nanochat chat --url http://localhost:8000 --api-key KEY")
    if url is not None and device != "auto":
        raise UsageError(f"--device {device}: a server computes where it likes", f"nanochat chat --url {url}")
    found = invocation.workspace.resolve_model(model) if url is None else None
    store = None
    if not no_history and prompt is None and not invocation.as_json and not invocation.dry_run:
        store = open_store(invocation)
        go_on = None if go_on is None else store.find(go_on).id
    if found is not None:
        if found.stage == "base":
            invocation.console.say(f"{found}: {BASE_NOTICE}")
        invocation.console.say(f"model {found}")
    if invocation.dry_run:
        if url is not None:
            invocation.would(f"ask {url}")
        return 0
    is_talk = prompt is None and not invocation.as_json
    preferences = read_preferences(invocation.home / "chat.toml") if is_talk else None  # before a model is loaded
    chosen = {key: value for key, value in sampling.items() if value is not None}
    if url is not None:
        key = api_key if api_key is not None else read_environ().get(KEY_VARIABLE, "")
        session, models = open_remote(invocation, url, key, model, chosen, system)
    else:
        session = open_local(found, device, chosen, system, invocation.console.say)
        models = LocalModels(invocation.workspace, device)
    if preferences is None:
        answer_once(invocation, session, prompt or "")
        return 0
    return talk(invocation, Recorder(session, store, go_on), plain, models, preferences)


def talk(invocation: Invocation, recorder: Recorder, plain: bool, models: Models, preferences: Preferences) -> int:
    """Choose the face: lines, or the full screen on a terminal."""
    console = invocation.console

    def edit(text: str) -> str:
        return edit_text(find_editor(read_environ()), text)

    streams = (sys.stdin, sys.stdout, sys.stderr)  # the full screen is drawn on stderr
    is_terminal = all(stream.isatty() for stream in streams)
    if is_terminal and not plain and read_environ().get("TERM") == "dumb":
        console.say("TERM=dumb: this terminal has no full screen; the chat goes line by line")
        plain = True
    if plain or not is_terminal:
        from nanochat.tui.completion import Completer, complete_in_readline
        from nanochat.tui.plain import run_plain

        if not sys.stdin.isatty():
            return run_plain(recorder, _read_line, console.write, console.say, models, is_script=True)
        complete_in_readline(Completer(recorder, models).complete)
        return run_plain(recorder, input, console.write, console.say, models, edit)
    from nanochat.tui.app import ChatApp
    from nanochat.tui.typed import take_typed

    if not invocation.color:
        switch_colors_off()
    app = ChatApp(recorder, invocation.home / "chats", models, preferences, edit, take_typed(sys.stdin))
    app.run()
    return app.return_code or 0


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


def check_sampling(sampling: dict[str, Any], command: str = "chat") -> None:
    """Raise UsageError for a number out of its range, before torch is imported."""
    for name, value in sampling.items():
        is_good, expected = BOUNDS[name]
        if value is not None and not is_good(value):
            raise UsageError(f"--{name.replace('_', '-')} {value} is not {expected}", f"nanochat {command} --help")


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
