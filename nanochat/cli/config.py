"""`nanochat config show | validate | schema`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from nanochat.cli.console import format_table
from nanochat.cli.options import Config, Invocation, Overrides, Preset, RunName, command, new_group
from nanochat.cli.target import choose_target
from nanochat.cli.validation import check_settings, say_missing
from nanochat.launch.cluster import Cluster
from nanochat.launch.launch import ALONE

app = new_group("See and check settings.")


@command(app, "show", "nanochat config show --preset d20 --origin")
def show(
    invocation: Invocation,
    preset: Preset = None,
    config: Config = None,
    overrides: Overrides = None,
    run: RunName = None,
    origin: Annotated[bool, typer.Option("--origin", help="Where each value came from.")] = False,
) -> None:
    """Print every setting, resolved: option over environment over file over preset over default."""
    from nanochat.config.load import find_empty, flatten

    settings, origins = resolve(invocation, preset, config, overrides, run)
    if origin:
        for name in find_empty():
            invocation.console.say(f"{name} is empty: ignored  # {name}=none unsets what may be unset")
    values = flatten(settings.model_dump())
    if invocation.as_json:
        shown: Any = settings.model_dump()
        if origin:
            shown = {key: {"value": value, "origin": origins.get(key, "default")} for key, value in values.items()}
        invocation.console.show_json(shown)
    elif origin:
        rows = [(key, origins.get(key, "default"), json.dumps(value)) for key, value in values.items()]
        invocation.console.show(format_table(rows))
    else:
        invocation.console.show(format_toml(settings.model_dump()))


@command(app, "validate", "nanochat config validate --config mine.toml --gpus 8")
def validate(
    invocation: Invocation,
    preset: Preset = None,
    config: Config = None,
    overrides: Overrides = None,
    run: RunName = None,
    cluster: Cluster = ALONE,
) -> None:
    """Check settings without starting anything: keys, bounds, divisibility, mixtures."""
    settings, origins = resolve(invocation, preset, config, overrides, run)
    if missing := check_settings(invocation, settings, origins, cluster.world_size):
        invocation.console.say(say_missing(missing))
    if empty := [stage for stage in ("mid", "sft") if not getattr(settings, stage).mixture]:
        invocation.console.say(f"{' and '.join(empty)}: the mixture is empty, so `train base` works and `run` does not")
    if invocation.as_json:
        invocation.console.show_json({"valid": True})
    else:
        invocation.console.show("the settings are valid")


@command(app, "schema", "nanochat config schema")
def schema(invocation: Invocation) -> None:
    """Print every key with its default and what it means; --json prints the JSON schema."""
    from nanochat.config.load import list_fields
    from nanochat.config.settings import Settings

    if invocation.as_json:
        invocation.console.show_json(Settings.model_json_schema())
        return
    for key, field in list_fields().items():
        default = json.dumps(field.get_default(call_default_factory=True))
        invocation.console.show(f"{key} = {default}\n    {' '.join((field.description or '').split())}")


def resolve(
    invocation: Invocation, preset: str | None, config: Path | None, overrides: list[str] | None, run: str | None
) -> tuple[Any, dict[str, str]]:
    """The settings of a run, or of a preset and a file (neither: the defaults), with the layers above them."""
    if run is not None and preset is None and config is None:
        target = choose_target(invocation, run=run, overrides=overrides)
        return target.settings, target.origins
    from nanochat.config.load import load_settings

    return load_settings(preset, config, overrides or ())


def format_toml(tree: dict[str, dict[str, Any]]) -> str:
    """Tables of values as TOML; a value that is unset becomes a comment."""
    lines = []
    for section, values in tree.items():
        lines.append(f"[{section}]")
        for key, value in values.items():
            lines.append(f"# {key} is unset" if value is None else f"{key} = {json.dumps(value)}")
        lines.append("")
    return "\n".join(lines).rstrip()
