"""Options that commands share, and the decorator that gives every command the global ones."""

import functools
import inspect
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer

from nanochat.cli.console import Console
from nanochat.errors import InterruptError, UsageError
from nanochat.launch.cluster import Cluster
from nanochat.launch.launch import count_gpus, is_offline, read_environ, resolve_home
from nanochat.paths import Workspace

Device = Literal["auto", "cpu", "cuda", "mps"]
Preset = Annotated[str | None, typer.Option("--preset", help="A preset by name: nanochat presets ls.")]
Config = Annotated[Path | None, typer.Option("--config", help="A TOML file of settings, over the preset.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One setting, over everything; repeatable.")
]
RunName = Annotated[
    str | None, typer.Option("--run", metavar="NAME", help="The run; default: the preset's name, else the newest run.")
]

LAUNCH_OPTIONS: dict[str, tuple[Any, Any]] = {
    "gpus": (Annotated[str, typer.Option("--gpus", metavar="N|all", help="Processes, one a device.")], "1"),
    "device": (
        Annotated[Device | None, typer.Option("--device", help="Short for --set runtime.device=...", metavar="DEVICE")],
        None,
    ),
    "nodes": (Annotated[int, typer.Option("--nodes", metavar="N", help="Machines that train together.")], 1),
    "node_rank": (Annotated[int, typer.Option("--node-rank", metavar="N", help="Which of them this is, from 0.")], 0),
    "rdzv_endpoint": (
        Annotated[str, typer.Option("--rdzv-endpoint", metavar="HOST:PORT", help="Where they meet: on node 0.")],
        "",
    ),
    "max_restarts": (
        Annotated[int, typer.Option("--max-restarts", metavar="N", help="Start again after a crash, so often.")],
        0,
    ),
}
"""How a stage is started: what a command gets that takes a `cluster` (and `overrides`, where --device goes)."""


GLOBAL_OPTIONS: dict[str, Any] = {
    "quiet": Annotated[bool, typer.Option("-q", "--quiet", help="Only results and errors.")],
    "verbose": Annotated[bool, typer.Option("-v", "--verbose", help="Say more: the commands that are started.")],
    "as_json": Annotated[bool, typer.Option("--json", help="Results as JSON on stdout.")],
    "no_color": Annotated[bool, typer.Option("--no-color", help="No colours (also NO_COLOR).")],
    "yes": Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")],
    "offline": Annotated[bool, typer.Option("--offline", help="Open no socket (also NANOCHAT_OFFLINE=1).")],
    "dry_run": Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and stop.")],
    "debug": Annotated[bool, typer.Option("--debug", help="Tracebacks of errors.")],
    "home": Annotated[str | None, typer.Option("--home", metavar="DIR", help="Where everything lies.")],
}
GLOBAL_FLAGS = (
    "-q",
    "--quiet",
    "-v",
    "--verbose",
    "--json",
    "--no-color",
    "-y",
    "--yes",
    "--offline",
    "--dry-run",
    "--debug",
)


@dataclass(frozen=True)
class Invocation:
    """The global options of one command."""

    quiet: bool = False
    verbose: bool = False
    as_json: bool = False
    color: bool = True
    yes: bool = False
    offline: bool = False
    dry_run: bool = False
    debug: bool = False
    home: Path = Path()
    console: Console = Console()

    @property
    def workspace(self) -> Workspace:
        return Workspace(self.home)

    def would(self, *deeds: str) -> None:
        """Show what a dry run would have done."""
        if self.as_json:
            self.console.show_json({"would": deeds})
        else:
            for deed in deeds:
                self.console.show(f"would {deed}")


def new_group(help: str) -> typer.Typer:
    """A group of commands."""
    return typer.Typer(
        help=help,
        no_args_is_help=True,
        rich_markup_mode=None,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def command(app: typer.Typer, name: str, example: str) -> Callable[[Callable], Callable]:
    """Register a function that takes an Invocation first; it returns None or an exit code.

    The global options are added to its signature, so that they work after the subcommand, and where it takes a
    `cluster` the launch options in its place.
    """

    def register(function: Callable) -> Callable:
        @functools.wraps(function)
        def run(**values: Any) -> int:
            shared = {key: values.pop(key) for key in GLOBAL_OPTIONS}
            invocation = build_invocation(**shared)
            if launches:
                os.getcwd()  # raises where it is gone: libraries of a worker would die with a word of their own
                launch = {key: values.pop(key) for key in LAUNCH_OPTIONS}
                values["cluster"], overrides = build_cluster(**launch)
                values["overrides"] = [*(values["overrides"] or ()), *overrides]
            try:
                return function(invocation, **values) or 0
            except KeyboardInterrupt:  # where the command itself has nothing to say about it
                raise InterruptError("interrupted", "the same command again") from None

        signature = inspect.signature(function)
        own = list(signature.parameters.values())[1:]
        for parameter in own:
            kind, *about = get_args(parameter.annotation) or (None,)
            if about and Path in (kind, *get_args(kind)):
                about[0].parser = path
        launches = "cluster" in signature.parameters
        if launches:
            keyword = inspect.Parameter.KEYWORD_ONLY
            own = [parameter for parameter in own if parameter.name != "cluster"]
            own += [
                inspect.Parameter(key, keyword, default=default, annotation=kind)
                for key, (kind, default) in LAUNCH_OPTIONS.items()
            ]
        added = [
            inspect.Parameter(
                key, inspect.Parameter.KEYWORD_ONLY, default=None if key == "home" else False, annotation=kind
            )
            for key, kind in GLOBAL_OPTIONS.items()
        ]
        run.__signature__ = signature.replace(parameters=[*own, *added])  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *added]}
        del run.__wrapped__
        app.command(name, epilog=f"Example: {example}")(run)
        return function

    return register


def path(text: str) -> Path:
    """The reader of every file or folder: pathlib takes "", of a variable that is not set, for the current folder."""
    if not text:
        raise typer.BadParameter("it is empty")
    return Path(text)


def build_invocation(
    no_color: bool = False, home: str | None = None, offline: bool = False, **flags: Any
) -> Invocation:
    """Join the global options with the environment."""
    environ = read_environ()
    color = not no_color and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"
    return Invocation(
        **flags,
        color=color,
        offline=is_offline(offline, environ),
        home=resolve_home(home, environ),
        console=Console(quiet=flags.get("quiet", False), color=color),
    )


def build_cluster(
    gpus: str, device: Device | None, nodes: int, node_rank: int, rdzv_endpoint: str, max_restarts: int
) -> tuple[Cluster, list[str]]:
    """The launch options as a Cluster, and the settings that they stand for."""
    overrides = [f"runtime.device={device}"] if device else []
    count = count_gpus(gpus, device or "auto", read_environ())
    return Cluster(count, nodes, node_rank, rdzv_endpoint, max_restarts).check(), overrides


def move_global_options(words: Sequence[str]) -> list[str]:
    """Let global options stand before the subcommand, too.

    >>> move_global_options(["--home", "x", "-q", "runs", "ls"])
    ['runs', 'ls', '--home', 'x', '-q']
    """
    moved: list[str] = []
    rest = list(words)
    while rest:
        if rest[0] in GLOBAL_FLAGS or rest[0].startswith("--home="):
            moved.append(rest.pop(0))
        elif rest[0] == "--home" and len(rest) > 1:
            moved += [rest.pop(0), rest.pop(0)]
        else:
            break
    if not rest or not moved:
        return list(words)
    end = rest.index("--") if "--" in rest else len(rest)
    return rest[:end] + moved + rest[end:]


def check_utf8(text: str) -> str:
    """Return text from the command line. Raises UsageError where it came from bytes that are not UTF-8.

    >>> check_utf8("na\u00efve")
    'na\u00efve'
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:  # Python has put a lone surrogate for each such byte
        raise _refuse_byte(ord(text[error.start]) & 0xFF, error.start) from None
    return text


def read_utf8(read: Callable[[], str]) -> str:
    """What `sys.stdin.read` or `.readline` returns. Raises UsageError for bytes that are not UTF-8, in any locale."""
    try:
        return check_utf8(read())
    except UnicodeDecodeError as error:
        raise _refuse_byte(error.object[error.start], error.start) from None


def _refuse_byte(byte: int, position: int) -> UsageError:
    return UsageError(f"the text is not UTF-8: byte 0x{byte:02x} at {position}", "iconv -f latin1 -t utf-8 FILE")


def complete_hint(hint: str, words: Sequence[str]) -> str:
    """Make a hint that only names options a whole command: the one that was typed, with these options.

    Such options may also stand behind another command.

    >>> complete_hint("--set batch.total_tokens=8", ["train", "base", "--set", "batch.total_tokens=7", "-q"])
    'nanochat train base -q --set batch.total_tokens=8'
    >>> complete_hint("nanochat runs copy a a-2 --until mid && --run a-2", ["train", "sft", "--run", "a", "-q"])
    'nanochat runs copy a a-2 --until mid && nanochat train sft -q --run a-2'
    """
    first, also, hint = hint.rpartition(" && ")
    if not hint.startswith("--"):
        return f"{first}{also}{hint}"
    named = shlex.split(hint, comments=True)
    replaced = {
        name if name != "--set" else f"--set {value.partition('=')[0]}"
        for name, value in zip(named, named[1:], strict=False)
    }
    kept: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equals, inline = word.partition("=")
        if name not in named or not name.startswith("--"):
            kept.append(word)
            continue
        given = inline if equals else rest.pop(0) if rest else ""
        if name == "--set" and f"--set {given.partition('=')[0].strip()}" not in replaced:
            kept += [name, given]
    return f"{first}{also}nanochat {shlex.join(kept)} {hint}"
