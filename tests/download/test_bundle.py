import io
import os
import shutil
import stat
import sys
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from nanochat.download.bundle import Bundle
from nanochat.download.fetch import Fetcher
from nanochat.errors import CapacityError, DataError
from tests.download.conftest import make_body
from tests.hub_faults import ENDLESS, FAULTS
from tests.hub_server import File, HubServer

MEMBERS = {
    "core.yaml": b"icl_tasks: []\n",
    "eval_meta_data.csv": b"a,b\n",
    "eval_data/world/one.jsonl": make_body("one", 90_000),
    "eval_data/two.jsonl": b'{"a": 1}\n',
}


def build_zip(members: dict[str, bytes], top: str = "eval_bundle/", compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", compression) as archive:
        for path, body in members.items():
            archive.writestr(zipfile.ZipInfo(f"{top}{path}"), body, compression)
        archive.writestr("__MACOSX/eval_bundle/._core.yaml", b"junk")
    return memory.getvalue()


def check_core(folder: Path) -> None:
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert {path: body for path, body in found.items() if path[0] != "."} == {
        **MEMBERS,
        "source.json": found["source.json"],
    }
    assert [path for path in found if path[0] == "."] == [".lock"]


@pytest.fixture
def bundle(server: HubServer, tmp_path: Path) -> Bundle:
    server.plain["bundle.zip"] = File(lambda: build_zip(MEMBERS))
    return Bundle(f"{server.url}/files/bundle.zip", tmp_path / "core")


def test_a_bundle_is_fetched_unpacked_and_kept(server, bundle, new_fetcher) -> None:
    record = new_fetcher().fetch([], [bundle])[bundle.folder]
    check_core(bundle.folder)
    assert record.repo == bundle.source and record.commit == server.plain["bundle.zip"].sha256
    new_fetcher(offline=True).fetch([], [bundle])
    assert server.count("bundle.zip") == 1


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_never_leaves_a_wrong_bundle(server, bundle, new_fetcher, fault) -> None:
    server.misbehave(fault, "bundle.zip", times=2)
    new_fetcher(is_patient=fault not in ENDLESS).fetch([], [bundle])
    check_core(bundle.folder)


def test_a_cut_bundle_is_gone_on_from_only_while_it_is_the_same(server, bundle, new_fetcher) -> None:
    server.misbehave("cut", "bundle.zip", times=1)
    new_fetcher().fetch([], [bundle])
    assert [headers.get("Range") is None for _, _, headers in server.requests] == [True, False]
    new_fetcher(update=True).fetch([], [bundle])
    server.misbehave("cut", "bundle.zip", times=1)
    server.misbehave("error_500", "bundle.zip", times=None)
    with pytest.raises(DataError, match="answers 500"):
        new_fetcher(update=True).fetch([], [bundle])
    check = dict(MEMBERS)
    check["eval_data/two.jsonl"] = b"other"
    server.plain["bundle.zip"] = File(lambda: build_zip(check))
    server.rules.clear()
    new_fetcher(update=True).fetch([], [bundle])
    assert (bundle.folder / "eval_data/two.jsonl").read_bytes() == b"other"


DISK_EVENTS = ("open", "os.mkdir", "os.remove", "os.rename", "os.rmdir")


def fetch_until(step: int, folder: Path, fetch: Callable[[], object]) -> bool:
    """Fetch in a process that ends, as a kill ends it, before its step-th access to a path below the folder.

    Returns whether it came to its end before.
    """
    pid = os.fork()
    if not pid:
        count = 0

        def watch(event: str, args: tuple) -> None:
            nonlocal count
            if event in DISK_EVENTS and str(args[0]).startswith(str(folder)):
                count += 1
                if count > step:
                    os._exit(9)

        try:
            sys.addaudithook(watch)
            fetch()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, 9)
    return code == 0


def test_a_kill_before_any_step_on_the_disk_leaves_nothing_behind(server, bundle, new_fetcher) -> None:
    steps = 0
    while not fetch_until(steps, bundle.folder, lambda: new_fetcher().fetch([], [bundle])):
        record = new_fetcher().fetch([], [bundle])[bundle.folder]
        check_core(bundle.folder)
        assert record.repo == bundle.source
        shutil.rmtree(bundle.folder)
        steps += 1
    check_core(bundle.folder)
    assert steps > 30


def test_another_source_replaces_the_bundle_and_what_it_no_longer_holds(server, bundle, new_fetcher, tmp_path) -> None:
    server.plain["bundle.zip"] = File(lambda: build_zip({**MEMBERS, "eval_data/three.jsonl": b"old"}))
    new_fetcher().fetch([], [bundle])
    source = tmp_path / "mine.zip"
    source.write_bytes(build_zip(MEMBERS, top=""))
    new_fetcher(offline=True).fetch([], [Bundle(str(source), bundle.folder, is_wish=True)])
    check_core(bundle.folder)


def test_a_folder_of_this_machine_is_a_source(bundle, new_fetcher, tmp_path) -> None:
    for path, body in MEMBERS.items():
        target = tmp_path / "source" / "eval_bundle" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(body)
    new_fetcher(offline=True).fetch([], [Bundle(str(tmp_path / "source"), bundle.folder, is_wish=True)])
    check_core(bundle.folder)


def test_a_bundle_that_was_put_there_by_hand_is_kept(server, bundle, new_fetcher) -> None:
    for path, body in MEMBERS.items():
        (bundle.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (bundle.folder / path).write_bytes(body)
    said: list[str] = []
    record = new_fetcher(said, offline=True).fetch([], [bundle])[bundle.folder]
    assert record.repo == "by hand" and set(record.files) == set(MEMBERS) and "by hand" in said[0]
    (bundle.folder / "core.yaml").unlink()
    new_fetcher().fetch([], [bundle])
    check_core(bundle.folder)


def with_link() -> bytes:
    memory = io.BytesIO(build_zip(MEMBERS))
    with zipfile.ZipFile(memory, "a") as archive:
        info = zipfile.ZipInfo("eval_bundle/eval_data/link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    return memory.getvalue()


@pytest.mark.parametrize(
    "build, sentence",
    [
        (lambda: build_zip({**MEMBERS, "../../escaped": b"x"}), "leads out of its folder"),
        (lambda: build_zip({**MEMBERS, "/escaped": b"x"}, top=""), "leads out of its folder"),
        (lambda: build_zip({**MEMBERS, "a\\..\\escaped": b"x"}), "leads out of its folder"),
        (lambda: build_zip({**MEMBERS, "C:/escaped": b"x"}, top=""), "leads out of its folder"),
        (with_link, "holds a link"),
        (lambda: build_zip({"readme.txt": b"x"}), "has no core.yaml"),
        (lambda: build_zip({"core.yaml": b"x", "eval_meta_data.csv": b""}), "has no eval_data/"),
        (lambda: b"no zip at all", "is no whole zip"),
        (lambda: build_zip(MEMBERS)[:-400], "is no whole zip"),
    ],
)
def test_what_is_no_bundle_or_would_escape_leaves_nothing(
    server, bundle, new_fetcher: Callable[..., Fetcher], tmp_path, build, sentence
) -> None:
    server.plain["bundle.zip"] = File(build)
    with pytest.raises(DataError, match=sentence):
        new_fetcher().fetch([], [bundle])
    assert not list(tmp_path.rglob("escaped*")) and not (bundle.folder / "core.yaml").exists()
    assert not (bundle.folder / "source.json").exists()


def test_a_source_that_is_not_there_is_missing(bundle, new_fetcher, tmp_path) -> None:
    with pytest.raises(DataError, match="there is no file"):
        new_fetcher().fetch([], [Bundle(str(tmp_path / "none.zip"), bundle.folder, is_wish=True)])


def test_a_bundle_needs_room(bundle, new_fetcher, monkeypatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 50_000}))
    with pytest.raises(CapacityError, match="unpacking the CORE bundle needs"):
        new_fetcher().fetch([], [bundle])
    assert not (bundle.folder / "core.yaml").exists()
