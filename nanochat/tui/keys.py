"""What keys do in the full screen, which ones by default, and how they are written. Knows no widget.

The names of keys are Textual's; people may write `Ctrl-R` for `ctrl+r`.
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass

Keymap = Mapping[str, tuple[str, ...]]
"""Action to its keys, all actions."""


@dataclass(frozen=True)
class Action:
    """keys: by default. label: in the line of keys at the bottom, "" for none. what: for the help."""

    name: str
    keys: tuple[str, ...]
    label: str
    what: str


ACTIONS = (
    Action("help", ("f1",), "Help", "this help"),
    Action("send", ("enter",), "", "send what is written"),
    Action("newline", ("ctrl+j", "alt+enter"), "", "break the line"),
    Action("complete", ("tab",), "", "complete a /command; else go on to the next part of the screen"),
    Action("stop", ("escape",), "Stop", "stop the answer, leave what is open, go back to the prompt"),
    Action("regenerate", ("ctrl+r",), "Again", "answer again; both answers are kept"),
    Action("edit", ("ctrl+e",), "Edit", "edit the last question, on a branch of its own"),
    Action("previous", ("f6",), "", "the answer or question before this one"),
    Action("next", ("f7",), "", "the one after it"),
    Action("editor", ("ctrl+o",), "", "write in $VISUAL or $EDITOR"),
    Action("page_up", ("pageup",), "", "scroll the conversation up"),
    Action("page_down", ("pagedown",), "", "and down"),
    Action("tools", ("ctrl+t",), "", "unfold or fold all tool calls"),
    Action("chats", ("f2",), "Chats", "conversations: search, open, remove"),
    Action("sampling", ("f3",), "Sampling", "numbers of sampling, system prompt"),
    Action("copy", ("f4",), "", "copy the answer"),
    Action("theme", ("f8",), "", "dark or light"),
    Action("new", ("ctrl+n",), "New", "new conversation"),
    Action("quit", ("ctrl+q", "ctrl+c"), "Quit", "leave"),
    Action("save", ("ctrl+s",), "Save", "save the conversation as a file"),
)
DEFAULT_KEYS: Keymap = {action.name: action.keys for action in ACTIONS}

MODIFIERS = ("ctrl", "alt", "shift")
NAMED = ("escape", "enter", "tab", "space", "insert", "pageup", "pagedown")
EDITING = ("backspace", "delete", "left", "right", "up", "down", "home", "end")
SPELLINGS = {"esc": "escape", "return": "enter", "pgup": "pageup", "pgdn": "pagedown", "del": "delete", "ins": "insert"}
SAME_BYTE = {"ctrl+i": "tab", "ctrl+m": "enter", "ctrl+h": "backspace"}
"""Which key a terminal takes for which: they send the same byte."""
SHOWN = {"escape": "Esc", "pageup": "PageUp", "pagedown": "PageDown"}


def read_key(text: str) -> str:
    """Textual's name of a key. Raises ValueError, as the end of a sentence, for what is none or must stay as it is.

    >>> read_key("Ctrl-R"), read_key("F5"), read_key("esc")
    ('ctrl+r', 'f5', 'escape')
    """
    *modifiers, base = re.split(r"[+-](?=.)", text.strip().lower())
    modifiers = ["ctrl" if modifier == "control" else modifier for modifier in modifiers]
    base = SPELLINGS.get(base, base)
    is_plain = re.fullmatch(r"[a-z0-9]", base) is not None
    if not (is_plain or base in (*NAMED, *EDITING) or re.fullmatch(r"f([1-9]|1[0-9]|2[0-4])", base)) or any(
        modifier not in MODIFIERS for modifier in modifiers
    ):
        names = [*SPELLINGS, *NAMED, *EDITING, *(f"{modifier}+x" for modifier in MODIFIERS)]
        near = difflib.get_close_matches(base, names, n=1, cutoff=0.6)
        raise ValueError("is no key" + (f"; did you mean {near[0]}?" if near else ""))
    key = "+".join([*(modifier for modifier in MODIFIERS if modifier in modifiers), base])
    key = SAME_BYTE.get(key, key)
    if (is_plain or base == "space") and not {"ctrl", "alt"} & set(modifiers):
        raise ValueError("is for typing: put ctrl+ or alt+ before it, or take one of F1 to F12")
    if key in EDITING:
        raise ValueError("moves or deletes in the prompt and cannot do anything else")
    return key


def show_key(key: str) -> str:
    """A key as people write it.

    >>> show_key("ctrl+r"), show_key("f5"), show_key("escape")
    ('Ctrl-R', 'F5', 'Esc')
    """
    return "-".join(SHOWN.get(part, part.capitalize()) for part in key.split("+"))


def shorten_key(key: str) -> str:
    """
    >>> shorten_key("ctrl+r"), shorten_key("ctrl+f5")
    ('^R', '^F5')
    """
    return show_key(key).replace("Ctrl-", "^")


def show_keys(keymap: Keymap) -> dict[str, str]:
    """Action to its first key, for a text in which it is named."""
    return {name: show_key(keys[0]) for name, keys in keymap.items()}


def list_keys(keymap: Keymap) -> list[tuple[str, str]]:
    """Keys and what they do, of all actions."""
    return [(", ".join(map(show_key, keymap[action.name])), action.what) for action in ACTIONS]
