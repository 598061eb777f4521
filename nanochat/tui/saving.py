"""A conversation as a file of its own, for Ctrl-S."""

import json
import time
from pathlib import Path
from typing import Any


def save_conversation(exported: dict[str, Any], folder: Path) -> Path:
    """Write what a session exports to a new file; an older one is never overwritten. Raises OSError."""
    text = json.dumps(exported, ensure_ascii=False, indent=2) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    stamp, number = time.strftime("%Y%m%d-%H%M%S"), 1
    while True:
        path = folder / f"chat-{stamp}{f'-{number}' if number > 1 else ''}.json"
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
            return path
        except FileExistsError:
            number += 1
