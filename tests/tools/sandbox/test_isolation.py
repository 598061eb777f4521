import sys
from pathlib import Path

import pytest

from nanochat.doctor.machine import check_sandbox
from nanochat.errors import UsageError
from nanochat.tools.sandbox import lockdown
from nanochat.tools.sandbox import probe as isolations
from nanochat.tools.sandbox.probe import Isolation, check_isolation, find_bubblewrap, measure_isolation

strong = pytest.mark.skipif(measure_isolation().level != "strong", reason="this machine cannot close a process")


def test_below_strong_it_refuses_and_names_the_gaps_and_the_flag() -> None:
    weak = Isolation("weak", ("rlimits", "no_new_privs"), ("read files", "open sockets"))
    with pytest.raises(UsageError, match="weak .rlimits, no_new_privs; it can read files, open sockets") as caught:
        check_isolation(weak, False)
    assert caught.value.exit_code == 2 and "--allow-weak-isolation" in caught.value.hint
    assert check_isolation(weak, True) is weak
    finding = check_sandbox(weak)
    assert finding.status == "warn" and "read files" in finding.message


@strong
def test_what_is_strong_says_its_layers() -> None:
    found = measure_isolation()
    assert {"rlimits", "no_new_privs", "seccomp"} <= set(found.layers) and not found.gaps
    assert check_sandbox(found).status == "ok"


@pytest.mark.parametrize(
    ("layer", "gap"),
    [("seccomp", "start processes"), ("seccomp", "open sockets"), ("landlock", "read files")],
)
@strong
def test_a_layer_that_is_missing_is_found_by_what_can_be_done_without_it(
    layer: str, gap: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same code in a package folder whose layer does nothing."""
    package = tmp_path / "nanochat"
    folder = package / "tools" / "sandbox"
    folder.mkdir(parents=True)
    source = Path(lockdown.__file__).parent
    for path in source.glob("*.py"):
        (folder / path.name).write_text(path.read_text())
    (package / "__init__.py").write_text("")
    (package / "tools" / "__init__.py").write_text("")
    names = {"seccomp": "filter_calls(libc, platform.machine())", "landlock": "restrict_files(libc, sys.path)"}
    text = (folder / "lockdown.py").read_text()
    assert names[layer] in text
    (folder / "lockdown.py").write_text(text.replace(names[layer], "False"))
    monkeypatch.setattr("nanochat.__file__", str(package / "__init__.py"))
    found = isolations._measure(())
    assert found.level == "weak" and gap in found.gaps and layer not in found.layers


def test_bubblewrap_that_does_not_work_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: No permissions to create a new namespace' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_bubblewrap() == ()
    fake.write_text(f"#!{sys.executable}\nimport time\ntime.sleep(600)\n")
    monkeypatch.setattr(isolations, "BWRAP_SECONDS", 0.5)
    assert find_bubblewrap() == ()


def test_a_python_that_does_not_start_is_no_isolation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolations, "find_bubblewrap", lambda: ())
    monkeypatch.setattr(sys, "_base_executable", "/nonexistent/python", raising=False)
    found = measure_isolation.__wrapped__()
    assert found.level == "none" and str(found) == "none (no layer)"


@pytest.mark.parametrize("machine", lockdown.ALLOWED)
def test_filters_are_whole_and_lists_are_disjoint(machine: str) -> None:
    """Every jump lands in the program, and no call is both free and checked."""
    program = lockdown.build_filter(machine)
    assert len(program) % 8 == 0
    count = len(program) // 8
    for place in range(count):
        code, true, false = program[8 * place], program[8 * place + 2], program[8 * place + 3]
        assert code != 0x15 or place + 1 + max(true, false) < count
    assert program[-8:-6] == b"\x06\x00"  # the last word is a return: what is not named is refused
    free, checked = lockdown.ALLOWED[machine], lockdown.CHECKED[machine]
    assert not set(free) & set(checked) and len({*free.values(), *checked.values()}) == len(free) + len(checked)
    assert not {"execve", "clone", "clone3", "fork", "socket", "ptrace", "kill", "prctl"} & {*free, *checked}


def test_a_machine_without_a_list_has_no_filter() -> None:
    assert lockdown.filter_calls(None, "riscv64") is False  # type: ignore[arg-type]
