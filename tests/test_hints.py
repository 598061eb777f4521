"""What the package tells people to paste: none of it writes over a file of theirs, or deletes one."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import nanochat

PACKAGE = Path(nanochat.__file__).parent
COMMANDS = r"(?:^|[;&|(`]\s*|#\s*|sudo\s+|then\s+)"
DESTROYS = re.compile(
    COMMANDS + r"(?:rm|rmdir|mv(?!\s+-n\b)|cp(?!\s+-n\b)|dd|shred|truncate|tee(?!\s+-a\b)|git\s+clean)\s+\S"
    r"|sed\s+-i|\s-delete\b|(?<![->=<&2])>(?![>=&])\s*(?!\s|/dev/null|/dev/tty)[\w./{~'\"]"
)
SHELL = re.compile(COMMANDS + r"(?:nanochat|iconv|cat|sed|head|awk|grep|python3?|echo|printf|jq|curl|tar|gzip)\s")
OURS = re.compile(r"^(?:nanochat \S+ [^#]*|-[^#]*)?(?:--yes|-y)(?!\w)")
ASKED = {
    "nanochat runs rm {} -y": "asked for: `runs rm` without the yes",
    "nanochat chats rm {} -y": "asked for: `chats rm` without the yes",
}


def iter_texts(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every text of a module but its docstrings, `{}` for what is filled in."""
    skipped = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            skipped |= {id(part) for part in node.values}
            parts = (str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
            yield node.lineno, "".join(parts)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield node.lineno, node.value


def find_destroying(source: str) -> list[str]:
    """The texts of a module that hold a command which writes over or deletes something."""
    found = []
    for line, text in iter_texts(ast.parse(source)):
        matches = [match for match in DESTROYS.finditer(text) if ">" not in match[0] or SHELL.search(text)]
        if matches or (OURS.search(text) and text not in ASKED):
            found.append(f"{line}: {text}")
    return found


def test_no_hint_of_the_package_writes_over_or_deletes_a_file() -> None:
    found = {path: find_destroying(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}
    told = [f"{path.relative_to(PACKAGE)}:{text}" for path, texts in found.items() for text in texts]
    told = [text for text in told if not re.fullmatch(r"cli/options\.py:\d+: (-y|--yes)", text)]  # the option itself
    assert not told, "\n".join(told)


@pytest.mark.parametrize(
    "hint",
    [
        "iconv -f latin1 -t utf-8 {name} > {name}.utf8 && mv {name}.utf8 {name}",
        "iconv -t utf-8 a.txt > b.txt",
        "rm -r {folder}",
        "mv {folder} {folder}.old",
        "nanochat doctor; rm {path}",
        "sed -i s/a/b/ {path}",
        "find . -name x -delete",
        "nanochat presets copy demo {path} -y",
        "--out {path} --yes",
        "--yes  # or another --out",
        "--yes",
    ],
)
def test_a_hint_that_destroys_is_found(hint: str) -> None:
    assert find_destroying(f"raise DataError('wrong', f{hint!r})") and find_destroying(f"HINT = {hint!r}")


@pytest.mark.parametrize(
    "hint",
    [
        "mv -n {a} {b}",
        "--out {folder}-2  # --yes replaces it",
        "nanochat runs rm RUN",
        "ls -l {path} 2>/dev/null",
        "a -> b",
        "x >= 3",
        "nanochat a >> {b}",
    ],
)
def test_a_hint_that_destroys_nothing_is_not(hint: str) -> None:
    assert not find_destroying(f"HINT = f{hint!r}")
