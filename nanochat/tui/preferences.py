"""`$NANOCHAT_HOME/chat.toml`: the keys and the theme of the chat. It says nothing about models, so it is no preset.

theme = "light"
[keys]
regenerate = "ctrl+g"
quit = ["ctrl+q", "f10"]
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanochat.errors import DataError, UsageError
from nanochat.tui.keys import DEFAULT_KEYS, Keymap, read_key, show_key

THEMES = {"dark": "textual-dark", "light": "textual-light"}
"""Our words for two of Textual's themes; its own names go too."""


@dataclass(frozen=True)
class Preferences:
    """keys: of every action. path: where they were read, or would be, for messages."""

    keys: Keymap = field(default_factory=lambda: dict(DEFAULT_KEYS))
    theme: str = "dark"
    path: Path = Path("chat.toml")


def read_preferences(path: Path) -> Preferences:
    """What the file says, or the defaults where there is none. Raises DataError if it cannot be read, and
    UsageError, with the line, for what is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return Preferences(path=path)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"cannot read {path}: {error}", f"mv -n {path} {path}.before  # the defaults come back"
        ) from None
    return parse_preferences(text, path)


def parse_preferences(text: str, path: Path) -> Preferences:
    """See read_preferences."""
    from nanochat.config.load import tomllib  # with pydantic, which nobody waits for without a file
    from nanochat.config.toml_lines import find_line

    def place(key: str) -> str:
        line = find_line(text, key)
        return f"{path}:{line}" if line else f"{path}"

    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is not TOML: {error}", 'for example regenerate = "ctrl+g" below [keys]') from None
    for name in tree:
        if name not in ("keys", "theme"):
            hint = (
                f'put it below a line "[keys]": {name} = ...'
                if name in DEFAULT_KEYS
                else _guess(name, ("keys", "theme"))
            )
            raise UsageError(f"{place(name)}: unknown key {name}", hint)
    theme = tree.get("theme", "dark")
    if not isinstance(theme, str) or theme not in (*list_themes(), *THEMES.values()):
        raise UsageError(f"{place('theme')}: there is no theme {theme!r}", _guess(str(theme), list_themes()))
    chosen = tree.get("keys", {})
    if not isinstance(chosen, dict):
        raise UsageError(f"{place('keys')}: keys is a table", '[keys] on a line of its own, then regenerate = "ctrl+g"')
    keys: dict[str, tuple[str, ...]] = dict(DEFAULT_KEYS)
    for name, value in chosen.items():
        where = place(f"keys.{name}")
        if name not in DEFAULT_KEYS:
            raise UsageError(f"{where}: unknown action {name}", _guess(name, DEFAULT_KEYS))
        keys[name] = _read_keys(name, value, where)
    _check_clashes(keys, chosen, place)
    return Preferences(keys, theme, path)


def list_themes() -> list[str]:
    """Names that `theme` may have."""
    from textual.theme import BUILTIN_THEMES

    return [*THEMES, *(name for name in BUILTIN_THEMES if name not in THEMES.values())]


def _read_keys(name: str, value: Any, where: str) -> tuple[str, ...]:
    wishes = [value] if isinstance(value, str) else value
    if not isinstance(wishes, list) or not wishes or not all(isinstance(wish, str) for wish in wishes):
        default = DEFAULT_KEYS[name][0]
        raise UsageError(
            f"{where}: keys.{name} = {value!r} is neither a key nor a list of keys", f'{name} = "{default}"'
        )
    found = []
    for wish in wishes:
        try:
            found.append(read_key(wish))
        except ValueError as error:
            raise UsageError(
                f"{where}: keys.{name} = {wish!r} {error}", f'{name} = "{DEFAULT_KEYS[name][0]}"'
            ) from None
    return tuple(dict.fromkeys(found))


def _check_clashes(keys: Keymap, chosen: Mapping[str, Any], place: Any) -> None:
    owners: dict[str, str] = {}
    for name in sorted(keys, key=lambda name: name in chosen):  # the one that was chosen is named
        for key in keys[name]:
            if key in owners:
                raise UsageError(
                    f"{place(f'keys.{name}')}: {show_key(key)} is the key of {owners[key]} already",
                    f"choose another one for {name}, or give {owners[key]} another",
                )
            owners[key] = name


def _guess(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"did you mean {near[0]}?" if near else f"one of {', '.join(known)}"
