"""The Makefile's choice: the machine's cargo where it works, else a toolchain in the virtual environment's folder."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOLS = ("cat", "chmod", "dirname", "echo", "make", "mkdir", "rm", "sh", "touch")
PYTHON = """#!/bin/sh
# A python of a virtual environment that writes down what it is asked for; as puccinialin it makes a cargo.
echo "$*" >> "$CALLS"
case "$*" in
*"-m puccinialin"*)
  test -z "$NO_NETWORK" || exit 1
  mkdir -p "$CARGO_HOME/bin"
  echo '#!/bin/sh' > "$CARGO_HOME/bin/cargo"
  echo 'echo "cargo of $CARGO_HOME: $*"' >> "$CARGO_HOME/bin/cargo"
  chmod +x "$CARGO_HOME/bin/cargo" ;;
*"-e ."*) cargo --version >> "$CALLS" ;;
esac
"""

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


class Checkout:
    """The Makefile in a folder with a space, with a virtual environment whose packages are installed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.tools, self.calls = folder / "check out", folder / "bin", folder / "calls"
        self.calls.touch()
        self.tools.mkdir()
        for name in TOOLS:
            if found := shutil.which(name):
                (self.tools / name).symlink_to(found)
        (self.folder / "rustbpe").mkdir(parents=True)
        for name in ("Makefile", "pyproject.toml", "rustbpe/Cargo.toml"):
            shutil.copy(ROOT / name, self.folder / name)
        self.add(self.folder / ".venv" / "bin" / "python", PYTHON)
        (self.folder / ".venv" / ".dependencies").touch()

    def add(self, path: Path, script: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(script)
        path.chmod(0o755)

    def make(self, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        values = {"PATH": str(self.tools), "CALLS": str(self.calls), **environ}
        return subprocess.run(
            ["make", "--no-print-directory", *words], cwd=self.folder, env=values, capture_output=True, text=True
        )


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_a_cargo_that_works_is_used(checkout: Checkout) -> None:
    checkout.add(checkout.tools / "cargo", "#!/bin/sh\necho cargo of the machine\n")
    done = checkout.make("build")
    calls = checkout.calls.read_text()
    assert done.returncode == 0 and "puccinialin" not in calls and "cargo of the machine" in calls, done.stderr


@pytest.mark.parametrize("is_broken", [False, True])
def test_without_one_a_toolchain_is_fetched_once_and_every_recipe_finds_it(checkout: Checkout, is_broken: bool) -> None:
    if is_broken:  # rustup's own, where no toolchain is installed
        checkout.add(checkout.tools / "cargo", "#!/bin/sh\nexit 1\n")
    done = checkout.make("build")
    own = checkout.folder / ".venv" / "rust"
    calls = checkout.calls.read_text()
    assert done.returncode == 0 and f"cargo of {own / 'cargo'}: --version" in calls, done.stderr
    assert f"-m puccinialin --location {own} " in calls
    checkout.calls.write_text("")
    assert "Nothing to be done" in checkout.make("build").stdout and checkout.calls.read_text() == ""
    assert f"cargo of {own / 'cargo'}: x" in checkout.make("--eval=probe: ; cargo x", "probe").stdout


def test_where_it_cannot_be_fetched_the_error_says_what_to_do(checkout: Checkout) -> None:
    done = checkout.make("build", NO_NETWORK="1")
    assert done.returncode != 0 and "-e ." not in checkout.calls.read_text()
    lines = done.stderr.splitlines()
    assert "error: Rust is not installed and cannot be fetched from here" in lines
    assert any(line.startswith("hint:  make build RUSTUP_UPDATE_ROOT=URL") and "rustup.rs" in line for line in lines)
    assert not (checkout.folder / ".venv" / ".built").exists()


def test_an_installation_asks_for_the_same_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """`pip install .` without cargo: maturin's backend names puccinialin as what the build needs."""
    maturin = pytest.importorskip("maturin")
    monkeypatch.setenv("PATH", "/nonexistent")
    assert "puccinialin" in maturin.get_requires_for_build_wheel()
