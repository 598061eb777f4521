"""`nanochat serve`: a model behind a page and an OpenAI-compatible API."""

import errno
import ipaddress
import math
import re
import socket
from typing import Annotated

import typer

from nanochat.cli.chat import check_sampling
from nanochat.cli.chats import open_store
from nanochat.cli.options import Invocation, command
from nanochat.errors import UsageError
from nanochat.launch.launch import read_environ, threads_that_sleep

DTYPES = ("auto", "float32", "bfloat16")
EVERYWHERE = ("0.0.0.0", "::")
KEY_VARIABLE = "NANOCHAT_API_KEY"


def register(app: typer.Typer) -> None:
    command(app, "serve", "nanochat serve demo --port 8000")(serve)


def serve(
    invocation: Invocation,
    model: Annotated[
        str | None,
        typer.Argument(help="RUN, RUN/sft, RUN/sft@650 or a checkpoint folder; default: the newest model."),
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on; another than loopback needs a key.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 8000,
    api_key: Annotated[
        str | None, typer.Option("--api-key", help=f"What clients must send; better in ${KEY_VARIABLE}.")
    ] = None,
    no_api_key: Annotated[bool, typer.Option("--no-api-key", help="Let anyone on the network ask.")] = False,
    allow_host: Annotated[
        list[str] | None, typer.Option("--allow-host", help="A name that clients reach this server by; repeatable.")
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option("--allow-origin", help="A page of another site that may ask, as https://name, or *; repeatable."),
    ] = None,
    root_path: Annotated[
        str, typer.Option("--root-path", help="Where a proxy shows this server, as /llm; it may leave that in paths.")
    ] = "",
    slots: Annotated[int, typer.Option("--slots", min=1, help="Answers at a time, on each device.")] = 16,
    max_waiting: Annotated[int, typer.Option("--max-waiting", min=0, help="Requests that may wait for a slot.")] = 64,
    max_context: Annotated[
        int | None, typer.Option("--max-context", min=2, help="Tokens of a conversation; default: the model's.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer.")] = 4096,
    temperature: Annotated[float, typer.Option("--temperature", help="Where a request has none.")] = 0.8,
    top_k: Annotated[int | None, typer.Option("--top-k", help="Where a request has none.")] = 50,
    deadline: Annotated[float, typer.Option("--deadline", min=1, help="Seconds of one request.")] = 300.0,
    drain: Annotated[float, typer.Option("--drain", min=0, help="Seconds that answers may go on at the end.")] = 20.0,
    no_history: Annotated[bool, typer.Option("--no-history", help="Keep nothing of the page's conversations.")] = False,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")] = "auto",
    dtype: Annotated[str, typer.Option("--dtype", help="auto, float32 or bfloat16.")] = "auto",
    gpus: Annotated[int, typer.Option("--gpus", min=1, help="Devices, each with an engine of its own.")] = 1,
) -> int:
    """Serve a model: a page to chat in, an OpenAI-compatible API, /health and /metrics.

    Conversations of the page are kept beside those of nanochat chat (nanochat chats ls); those of the API are not.
    """
    sampling = {"temperature": temperature, "top_k": top_k, "top_p": None, "seed": None, "max_new_tokens": None}
    check_sampling(sampling, "serve")
    for option, seconds in (("--deadline", deadline), ("--drain", drain)):
        if not math.isfinite(seconds):
            raise UsageError(f"{option} {seconds} is no number of seconds", f"nanochat serve {option} 300")
    key = api_key if api_key is not None else read_environ().get(KEY_VARIABLE, "")
    check_key(key, f"${KEY_VARIABLE}" if api_key is None else "--api-key")
    hosts = {read_host(text) for text in allow_host or ()}
    origins, prefix = tuple(read_origin(text) for text in allow_origin or ()), read_root_path(root_path)
    is_local = is_loopback(host)
    if not is_local and not key and not no_api_key:
        raise UsageError(
            f"--host {host} opens the model to the network, and there is no key",
            f"{KEY_VARIABLE}=... nanochat serve --host {host}  # or --no-api-key, if anyone may ask",
        )
    if dtype not in DTYPES:
        raise UsageError(f"--dtype {dtype} is none of {', '.join(DTYPES)}", "nanochat serve --dtype auto")
    found = invocation.workspace.resolve_model(model)
    invocation.console.say(f"model {found}")
    if invocation.dry_run:
        return 0
    store = None if no_history else open_store(invocation)
    listener = open_port(host, port)

    with threads_that_sleep():
        from nanochat.runtime import list_devices, pick_dtype, use_all_cores
    from nanochat.engine.sampling import SamplingParams
    from nanochat.stages.assemble import assemble_model, load_newest
    from nanochat.web.app import build_app
    from nanochat.web.build import build_service
    from nanochat.web.guard import LOOPBACK as LOOPBACK_NAMES
    from nanochat.web.guard import Access
    from nanochat.web.server import run_server
    from nanochat.web.service import Limits

    use_all_cores()
    places = list_devices(device, gpus)
    found, checkpoint = load_newest(found, invocation.console.say)
    loaded = [assemble_model(found, checkpoint, place, pick_dtype(dtype, place)[0]) for place in places]
    service = build_service(
        [each[0] for each in loaded],
        loaded[0][1],
        str(found),
        num_slots=slots,
        max_context=max_context,
        max_waiting=max_waiting,
        default=SamplingParams(temperature=temperature, top_k=top_k),
        limits=Limits(max_new_tokens, deadline),
        is_chat=found.stage != "base",
    )
    names = {*LOOPBACK_NAMES, host.lower(), *hosts}
    access = Access(names if is_local or hosts else None, origins, key, root_path=prefix)
    bound, number = listener.getsockname()[:2]
    is_everywhere = bound in EVERYWHERE
    name = "127.0.0.1" if is_everywhere else f"[{host}]" if ":" in host else host
    address = f"http://{name}:{number}"

    def tell() -> None:
        if is_everywhere:
            invocation.console.say(f"it listens on all addresses of this machine, port {number}")
        invocation.console.say(f"{slots} slots of {service.max_context:,} tokens; the API is at {address}/v1")
        invocation.console.say("the page is at this address; Ctrl-C ends")
        invocation.console.show(address)

    run_server(build_app(service, access, store), service, listener, drain, tell, say=invocation.console.say)
    return 0


def check_key(key: str, source: str) -> None:
    """Raise UsageError for a key that a client cannot send in a header. It is not repeated: it is a secret."""
    if wrong := re.search(r"[^!-~]", key):
        what = "a space" if wrong[0] == " " else "no visible ASCII character"
        raise UsageError(
            f"character {wrong.start() + 1} of {source} is {what}, and no API client can send such a key",
            "python -c 'import secrets; print(secrets.token_urlsafe())'  # makes one that all can send",
        )


def read_origin(text: str) -> str:
    """A page's origin as a browser sends it. Raises UsageError.

    >>> read_origin("https://Our.Example:443/"), read_origin("*"), read_origin("http://localhost:3000")
    ('https://our.example', '*', 'http://localhost:3000')
    """
    found = re.fullmatch(r"([a-z][a-z0-9+.-]*)://(\[[0-9a-f:]+\]|[\w.-]+)(:\d{1,5})?/?", text.strip().lower())
    if text in ("*", "null"):
        return text
    if found is None:
        name = re.sub(r"^.*://|/.*$", "", text.strip()) or "name"
        raise UsageError(f"--allow-origin {text!r} is no origin", f"nanochat serve --allow-origin https://{name}")
    scheme, host, port = found.groups()
    is_default = (scheme, port) in (("http", ":80"), ("https", ":443"))
    return f"{scheme}://{host}{'' if is_default else port or ''}"


def is_loopback(host: str) -> bool:
    """
    >>> is_loopback("localhost"), is_loopback("127.0.0.2"), is_loopback("::1"), is_loopback("0.0.0.0")
    (True, True, True, False)
    """
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_host(text: str) -> str:
    """A host's name as the Host header is compared. Raises UsageError.

    >>> read_host("MyBox.local"), read_host("[::1]")
    ('mybox.local', '::1')
    """
    name = text.strip().lower()
    if re.fullmatch(r"[\w.-]+|\[?[0-9a-f:]*:[0-9a-f:]*:[0-9a-f:.]*\]?", name):
        return name.strip("[]")
    guess = re.sub(r"^.*://|[:/].*$", "", name)
    guess = guess if re.fullmatch(r"[\w.-]+", guess) else "box.example"
    raise UsageError(f"--allow-host {text!r} is no name of a host", f"nanochat serve --allow-host {guess}")


def read_root_path(text: str) -> str:
    """What stands before the server's paths. Raises UsageError.

    >>> read_root_path("/llm/"), read_root_path("/")
    ('/llm', '')
    """
    path = text.rstrip("/")
    if path and re.fullmatch(r"(/[\w.~-]+)+", path, re.ASCII) is None:
        raise UsageError(
            f"--root-path {text!r} does not begin with /, or has odd characters", "nanochat serve --root-path /llm"
        )
    return path


def open_port(host: str, port: int) -> socket.socket:
    """Listen, before the model is loaded: a port that is taken is said at once."""
    listener = None
    try:
        # With the protocol named, asyncio sets TCP_NODELAY; without it the first token waits 40 ms for an
        # acknowledgement.
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if host == "::" and socket.has_dualstack_ipv6():
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind((host, port))
        listener.listen(512)
    except (OSError, UnicodeError) as error:  # UnicodeError: what no name of a host can be
        if listener is not None:
            listener.close()
        why = getattr(error, "strerror", None) or str(error)
        place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        raise UsageError(f"cannot listen on {place}: {why}", _suggest_place(error, port)) from error
    listener.set_inheritable(False)
    return listener


def _suggest_place(error: Exception, port: int) -> str:
    """Another port where it is the port that cannot be had, another address where it is the address."""
    number = getattr(error, "errno", None)
    if number == errno.EADDRINUSE:
        return f"nanochat serve --port {port + 1 if port < 65535 else 0}"
    if number in (errno.EACCES, errno.EPERM):
        return "nanochat serve --port 8000  # below 1024 they are the administrator's"
    return "nanochat serve --host 127.0.0.1  # or another address of this machine"
