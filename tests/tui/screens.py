"""Screens as text, compared with files: `NANOCHAT_UPDATE_SNAPSHOTS=1 pytest tests/tui` writes them anew."""

import os
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import textual
from textual.app import App

FOLDER = Path(__file__).parent / "snapshots"
MADE_WITH = "8"
"""Major version of Textual that drew them: another one may draw a border or a list otherwise."""
CHAR_WIDTH, LINE_HEIGHT = 12.2, 24.4
"""Of a cell in rich's SVG."""


def read_screen(app: App) -> str:
    """What is on the screen, without colours."""
    svg = ElementTree.fromstring(app.export_screenshot())
    rows = [[" "] * app.size.width for _ in range(app.size.height)]
    for text in svg.iter("{http://www.w3.org/2000/svg}text"):
        line = re.search(r"-line-(\d+)\)", text.get("clip-path", ""))
        if line is None or not text.text:  # the title
            continue
        column = round(float(text.get("x", 0)) / CHAR_WIDTH)
        for offset, character in enumerate(text.text.replace("\xa0", " ")):
            if column + offset < app.size.width:
                rows[int(line[1])][column + offset] = character
    return "\n".join("".join(row).rstrip() for row in rows) + "\n"


def check_snapshot(app: App, name: str) -> None:
    """Compare the screen with `snapshots/NAME.txt`."""
    path, found = FOLDER / f"{name}.txt", read_screen(app)
    if os.environ.get("NANOCHAT_UPDATE_SNAPSHOTS"):
        FOLDER.mkdir(exist_ok=True)
        path.write_text(found, encoding="utf-8")
        return
    if textual.__version__.partition(".")[0] != MADE_WITH:
        pytest.skip(f"drawn with Textual {MADE_WITH}, and this is {textual.__version__}")
    assert path.exists(), f"there is no {path.name}: NANOCHAT_UPDATE_SNAPSHOTS=1 writes it"
    expected = path.read_text(encoding="utf-8")
    assert found == expected, f"\n{found}\nis not {path.name}, but:\n{expected}\nNANOCHAT_UPDATE_SNAPSHOTS=1 accepts it"
