"""From wishes to Settings: option over environment over file over preset over default, and where each value came from.

The one place that reads NANOCHAT_ variables. Knows neither torch nor the command line.
"""

import difflib
import json
import math
import os
import re
import shlex
import sys
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from nanochat.config.settings import Settings
from nanochat.config.toml_lines import describe_place
from nanochat.errors import DataError, MissingError, UsageError
from nanochat.files import is_edited, sign

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

PREFIX = "NANOCHAT_"
OTHER_VARIABLES = ("NANOCHAT_HOME", "NANOCHAT_OFFLINE", "NANOCHAT_API_KEY")
"""What the environment may say beside settings. All other NANOCHAT_ variables without `__` are ignored."""
LIKELY = 0.8
"""How alike two names are when one is probably a typing error of the other: difflib's ratio, 0.86 for HME and HOME."""
FILE_KEYS = ("mid.mixture", "sft.mixture", "rl.task", "eval.tasks")
"""Settings that may name files of the user's."""
FILE_ENTRY = re.compile(r"(custom:)(.+?)((?::\d*){0,3}(?:\*\d+)?)|()([^:*]+\.py)(:.*)")
"""`custom:FILE` with its part and repetitions, or `FILE.py:Class` (tasks/entry.py)."""
ALL_KEYS = "nanochat config schema"

Origins = dict[str, str]
"""Dotted key -> where its value came from: `default`, `preset d20`, `my.toml:3`, `NANOCHAT_BASE__FLOPS`, `--set`."""


@dataclass(frozen=True)
class Wish:
    """One value that a layer states. place: for error messages, such as `my.toml:3`."""

    key: str
    value: Any
    origin: str
    place: str


def load_settings(
    preset: str | None = None,
    config_file: Path | None = None,
    overrides: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
) -> tuple[Settings, Origins]:
    """Merge the layers. overrides: `key=value` each. environ: None is the process's own.

    Raises UsageError for unknown keys, unknown NANOCHAT_SECTION__KEY variables and values out of bounds; MissingError
    for an absent file.
    """
    wishes: list[Wish] = []
    if preset is not None:
        wishes += read_toml(load_preset(preset), f"preset {preset}", with_line=False)
    if config_file is not None:
        text, folder = _read_file(config_file), config_file.absolute().parent
        wishes += read_toml(text, str(config_file), with_line=True, folder=folder)
    wishes += read_environment(os.environ if environ is None else environ)
    wishes += [read_override(text) for text in overrides]
    return apply_wishes(Settings(), wishes)


def apply_wishes(start: Settings, wishes: Iterable[Wish], origins: Origins | None = None) -> tuple[Settings, Origins]:
    """Put wishes over settings, later ones over earlier ones. origins: of the start; None: all `default`."""
    tree = start.model_dump()
    origins = dict(origins or dict.fromkeys(flatten(tree), "default"))
    places: dict[str, Wish] = {}
    for wish in wishes:
        section, _, name = wish.key.partition(".")
        _check_number(wish)
        tree[section][name] = wish.value
        origins[wish.key] = wish.origin
        places[wish.key] = wish
    try:
        settings = Settings.model_validate(tree)
    except ValidationError as error:
        raise _explain(error, places) from None
    return settings, origins


def flatten(tree: dict[str, Any]) -> dict[str, Any]:
    """{"base": {"flops": 1.0}} -> {"base.flops": 1.0}"""
    return {f"{section}.{name}": value for section, values in tree.items() for name, value in values.items()}


def list_fields() -> dict[str, Any]:
    """Dotted key -> pydantic's field, in the order of the schema."""
    return {
        f"{section}.{name}": field
        for section, model in _sections().items()
        for name, field in model.model_fields.items()
    }


def read_override(text: str) -> Wish:
    """Read one `--set key=value`.

    >>> read_override("base.num_steps=300").value, read_override("mid.mixture=letters:50,identity").value
    (300, ['letters:50', 'identity'])
    """
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals:
        raise UsageError(f"--set {text} is not KEY=VALUE", "for example --set base.num_steps=300")
    _check_key(key, "--set")
    return Wish(key, anchor_files(key, parse_value(key, value)), "--set", "--set")


def read_environment(environ: Mapping[str, str]) -> list[Wish]:
    """The settings that NANOCHAT_SECTION__KEY variables state; those that are empty state nothing.

    Raises UsageError for such a name that is no setting. Variables without `__` are none of ours: Kubernetes writes
    NANOCHAT_PORT into each pod beside a service named nanochat.
    """
    known = _list_variables()
    wishes = []
    for name, value in sorted(environ.items()):
        if not name.startswith(PREFIX) or "__" not in name or not value.strip():
            continue
        if name not in known:
            raise UsageError(f"unknown environment variable {name}", _did_you_mean(name, known) or f"unset {name}")
        value = anchor_files(known[name], parse_value(known[name], value))
        wishes.append(Wish(known[name], value, name, name))
    return wishes


def find_empty(environ: Mapping[str, str] | None = None) -> list[str]:
    """Variables of settings that are empty, and so ignored. environ: None is the process's own."""
    environ = os.environ if environ is None else environ
    return sorted(name for name in _list_variables() if name in environ and not environ[name].strip())


def find_misspelt(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """NANOCHAT_ variables that mean nothing but look as if they should, each with the name that was probably meant.

    environ: None is the process's own.

    >>> find_misspelt({"NANOCHAT_HME": "/data", "NANOCHAT_BASE_FLOPS": "1e18", "NANOCHAT_PORT": "tcp://10.0.0.1:80"})
    {'NANOCHAT_BASE_FLOPS': 'NANOCHAT_BASE__FLOPS', 'NANOCHAT_HME': 'NANOCHAT_HOME'}
    """
    environ = os.environ if environ is None else environ
    meant = {name.removeprefix(PREFIX).replace("__", "_"): name for name in (*OTHER_VARIABLES, *_list_variables())}
    meant |= {key.partition(".")[2].upper(): PREFIX + key.upper().replace(".", "__") for key in reversed(list_fields())}
    found = {}
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in meant.values():
            words = name.removeprefix(PREFIX).replace("__", "_").upper()
            if near := difflib.get_close_matches(words, meant, n=1, cutoff=LIKELY):
                found[name] = meant[near[0]]
    return found


def _list_variables() -> dict[str, str]:
    """Name of a variable -> the dotted key that it sets."""
    return {PREFIX + key.upper().replace(".", "__"): key for key in list_fields()}


def list_presets() -> dict[str, str]:
    """Name -> TOML text, the smallest model first."""
    return dict(sorted(_iter_preset_files(), key=lambda item: (item[0] != "demo", len(item[0]), item[0])))


def load_preset(name: str) -> str:
    """The TOML text of a preset. Raises UsageError where there is none of that name."""
    presets = list_presets()
    if name not in presets:
        hint = "nanochat presets ls"
        if name.endswith(".toml"):
            hint = f"a file is given with --config {name}"
        elif near := difflib.get_close_matches(name, list(presets), n=3, cutoff=0.5):
            likest = max(
                (p for p in presets if p in near), key=lambda preset: len(os.path.commonprefix([preset, name]))
            )
            hint = f"did you mean {likest}? nanochat presets ls shows all"
        raise UsageError(f"there is no preset {name!r}, only {', '.join(presets)}", hint)
    return presets[name]


def read_toml(text: str, name: str, with_line: bool = True, folder: Path | None = None) -> list[Wish]:
    """The settings that a TOML text states.

    name: of the file or preset, for origins and errors. folder: where the file lies.
    """
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{name} is not TOML: {error}", "check the line with an editor; strings need quotes") from None
    wishes = []
    for section, values in tree.items():
        if not isinstance(values, dict) and section in _sections():
            said = f"{describe_place(text, name, section)}: {section} is a table, not {values!r}"
            raise UsageError(said, f"a line [{section}], and its keys below; {ALL_KEYS} shows all")
        if not isinstance(values, dict):
            raise UsageError(
                f"{describe_place(text, name, section)}: unknown key {section}",
                _did_you_mean(section, [*_sections(), *list_fields()]) or f"put it in a table; {ALL_KEYS} shows all",
            )
        if section not in _sections():
            raise UsageError(
                f"{describe_place(text, name, section)}: unknown table [{section}]",
                _did_you_mean(section, _sections()) or f"{ALL_KEYS} shows all",
            )
        for key, value in values.items():
            dotted = f"{section}.{key}"
            place = describe_place(text, name, dotted)
            _check_key(dotted, place)
            wishes.append(Wish(dotted, anchor_files(dotted, value, folder), place if with_line else name, place))
    return wishes


def parse_value(key: str, text: str) -> Any:
    """Read the text of an option or a variable as the field of this key wants it.

    TOML values, and besides: text without quotes, lists as `a,b`, and `none` where a field may be unset.
    """
    kinds = _kinds(list_fields()[key].annotation)
    stripped = text.strip()
    try:
        value = tomllib.loads(f"value = {stripped}")
        parsed = value["value"] if len(value) == 1 else stripped
    except tomllib.TOMLDecodeError:
        parsed = stripped
    if type(None) in kinds and stripped.lower() in ("none", "null", ""):
        return None
    if list in kinds:
        return parsed if isinstance(parsed, list) else [part.strip() for part in stripped.split(",") if part.strip()]
    if str in kinds and not (int in kinds and isinstance(parsed, int)):  # `16` of a field that is a number or "auto"
        return parsed if isinstance(parsed, str) else stripped
    if bool in kinds:
        return {"1": True, "0": False, "yes": True, "no": False, "on": True, "off": False}.get(
            stripped.lower(), {"true": True, "false": False}.get(stripped.lower(), parsed)
        )
    return parsed


def anchor_files(key: str, value: Any, folder: Path | None = None) -> Any:
    """Make the files that a setting names absolute: they mean the folder where they were named, wherever they are used.

    folder: of the file that states the value; None: the current one, of the command line and the environment.

    >>> anchor_files("mid.mixture", ["identity*20", "custom:mine.jsonl:0:50*2", "own.py:Task"], Path("/h"))
    ['identity*20', 'custom:/h/mine.jsonl:0:50*2', '/h/own.py:Task']
    """
    if isinstance(value, list):
        return [anchor_files(key, item, folder) for item in value]
    found = FILE_ENTRY.fullmatch(value.strip()) if key in FILE_KEYS and isinstance(value, str) else None
    if not found:
        return value
    before, file, after = (part for part in found.groups() if part is not None)
    path = Path(os.path.expanduser(file))
    return f"{before}{folder / path if folder else path.absolute()}{after}"


def is_chosen(origins: Origins, key: str) -> bool:
    """Whether a person chose this value: by an option, a file or the environment, not by a preset or a default.

    >>> is_chosen({"a.b": "my.toml:3", "a.c": "preset d20"}, "a.b"), is_chosen({"a.c": "preset d20"}, "a.c")
    (True, False)
    """
    return not origins.get(key, "default").startswith(("default", "preset "))


def options_again(preset: str | None, settings: Settings, origins: Origins, changes: dict | None = None) -> list[str]:
    """Options that say all of a run's settings again, whatever file they came from. changes: what is to differ."""
    values = flatten(settings.model_dump())
    wishes = {key: values[key] for key in origins if key in values and is_chosen(origins, key)} | (changes or {})
    words = ["--preset", preset] if preset else ["--config", os.devnull]
    for key, value in wishes.items():
        words += [
            "--set",
            f"{key}={value if isinstance(value, str) else json.dumps(value) if value is not None else 'none'}",
        ]
    return words


def differing_keys(before: Settings, after: Settings) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (before, after) for every setting that differs."""
    old, new = flatten(before.model_dump()), flatten(after.model_dump())
    return {key: (old[key], new[key]) for key in new if old[key] != new[key]}


def save_settings(path: Path, preset: str | None, settings: Settings, origins: Origins, version: str) -> None:
    """Write the settings of a run, complete, atomically."""
    record = {
        "preset": preset,
        "settings": settings.model_dump(),
        "origins": origins,
        "nanochat_version": version,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(sign(record), indent=1) + "\n", encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_saved(path: Path) -> tuple[str | None, Settings, Origins]:
    """Read what save_settings wrote: preset, settings, origins. Raises MissingError and DataError."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        settings = Settings.model_validate(record["settings"])
        origins = dict(record.get("origins") or {})
        if is_edited(record):  # an edited value is no default any more
            plain = flatten(Settings().model_dump())
            edited = [key for key, value in flatten(settings.model_dump()).items() if value != plain[key]]
            origins |= {key: path.name for key in edited if origins.get(key) == "default"}
        return record.get("preset"), settings, origins
    except FileNotFoundError:
        raise MissingError(f"there is no {path}", "nanochat runs ls") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        name, hint = path.parent.name, "put the file back, or train in a new run"
        if any(path.parent.glob("*/checkpoints/step_*")):
            hint = f"nanochat chat {name}  # its models work; to train on, put the file back"
        raise DataError(f"{path} cannot be read: {reason}", hint) from None


def _iter_preset_files() -> Iterable[tuple[str, str]]:
    installed = resources.files("nanochat") / "presets"
    folder: Any = installed if installed.is_dir() else Path(__file__).parent.parent / "presets"
    for file in folder.iterdir():
        if file.name.endswith(".toml"):
            yield file.name.removesuffix(".toml"), file.read_text(encoding="utf-8")


def _read_file(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # editors on Windows put a mark before it
    except FileNotFoundError:
        raise MissingError(f"there is no file {path}", f"nanochat presets copy demo {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}", f"ls -l {shlex.quote(str(path))}") from None


def _sections() -> dict[str, type[BaseModel]]:
    return {name: typing.cast(type[BaseModel], field.annotation) for name, field in Settings.model_fields.items()}


def _kinds(annotation: Any) -> set[type]:
    """The plain types of an annotation: `int | None` -> {int, NoneType}, Literal["a"] -> {str}."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _kinds(typing.get_args(annotation)[0])
    if origin is Literal:
        return {type(value) for value in typing.get_args(annotation)}
    if origin in (types.UnionType, typing.Union):
        return {kind for part in typing.get_args(annotation) for kind in _kinds(part)}
    return {origin or annotation}


def _check_key(key: str, place: str) -> None:
    fields = list_fields()
    if key not in fields:
        near = _did_you_mean(key, fields)
        raise UsageError(f"{place}: unknown key {key}", near or f"{ALL_KEYS} shows all")


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    known = list(known)
    last = name.rpartition(".")[2]  # a forgotten or a wrong table: `matrix_lr`, `model.matrix_lr`
    near = [key for key in known if "." in key and key.rpartition(".")[2] == last]
    near.sort(key=lambda key: -difflib.SequenceMatcher(None, key, name).ratio() if "." in name else 0)
    near = near or difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {near[0]}?" if near else ""


def _check_number(wish: Wish) -> None:
    """TOML can write inf, which arithmetic cannot use, and pydantic takes `true` for 1."""
    kinds = _kinds(list_fields()[wish.key].annotation)
    infinite = isinstance(wish.value, float) and not math.isfinite(wish.value)
    if infinite or (isinstance(wish.value, bool) and bool not in kinds):
        where = "" if wish.place == "--set" else f"{wish.place}: "
        raise UsageError(f"{where}{wish.key} = {json.dumps(wish.value)} is not a finite number", ALL_KEYS)


def _explain(error: ValidationError, places: dict[str, Wish]) -> UsageError:
    """The first problem as a sentence: `my.toml:3: base.num_steps = 0: must be at least 1`."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"][:2])
    wish = places.get(key)
    message = first["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    value = f"{key} = {json.dumps(wish.value, default=str)}" if wish else key
    field = list_fields().get(key)
    about = f" ({' '.join(field.description.split())})" if field is not None and field.description else ""
    place = f"{wish.place}: " if wish and wish.place != "--set" else ""
    return UsageError(f"{place}{value}: {message}{about}", ALL_KEYS)
