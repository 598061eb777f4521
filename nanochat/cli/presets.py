"""`nanochat presets ls | show | copy`."""

from pathlib import Path
from typing import Annotated

import typer

from nanochat.cli.console import format_table
from nanochat.cli.options import Invocation, command, new_group
from nanochat.errors import UsageError
from nanochat.files import write_atomically

app = new_group("The presets that come with nanochat.")

Name = Annotated[str, typer.Argument(metavar="PRESET", help="The preset.")]


@command(app, "ls", "nanochat presets ls")
def list_all(invocation: Invocation) -> None:
    """List the presets, the smallest model first."""
    from nanochat.config.load import list_presets, load_settings
    from nanochat.config.plan import plan_base

    rows = []
    for name, text in list_presets().items():
        plan = plan_base(load_settings(name, environ={})[0])
        about = text.splitlines()[0].lstrip("# ").removeprefix(f"{name}: ")
        rows.append({"preset": name, "depth": plan.depth, "num_params": plan.num_params, "about": about})
    if invocation.as_json:
        invocation.console.show_json(rows)
        return
    table = [(row["preset"], row["depth"], f"{row['num_params'] / 1e6:,.1f}M", row["about"]) for row in rows]
    invocation.console.show(format_table(table, ("preset", "depth", "params", "about"), right=[1, 2]))


@command(app, "show", "nanochat presets show demo")
def show(invocation: Invocation, name: Name) -> None:
    """Print a preset's TOML, with the arithmetic in its comments."""
    from nanochat.config.load import load_preset

    text = load_preset(name)
    if invocation.as_json:
        invocation.console.show_json({"preset": name, "toml": text})
    else:
        invocation.console.show(text.rstrip())


@command(app, "copy", "nanochat presets copy d20 mine.toml")
def copy(
    invocation: Invocation,
    name: Name,
    file: Annotated[Path | None, typer.Argument(help="Where to; default: PRESET.toml here.")] = None,
) -> None:
    """Copy a preset to a file of yours, to change it."""
    from nanochat.config.load import load_preset

    text = load_preset(name)
    file = (file or Path(f"{name}.toml")).expanduser()
    if file.is_dir():
        file /= f"{name}.toml"
    if file.exists() and not invocation.yes:
        another = file.with_stem(f"{file.stem}-2")
        raise UsageError(
            f"{file} is already there", f"nanochat presets copy {name} {another}  # --yes writes over {file}"
        )
    if invocation.dry_run:
        invocation.would(f"write {file}")
        return
    write_atomically(file, text.rstrip("\n"))
    if invocation.as_json:
        invocation.console.show_json({"preset": name, "file": str(file)})
    else:
        invocation.console.show(str(file))
    invocation.console.suggest(f"nanochat run --config {file}")
