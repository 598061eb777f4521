import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from nanochat.data.shards import load_manifest, verify_dataset, write_shards
from nanochat.download.fetch import Order
from nanochat.download.pack import LIST, pack, unpack
from nanochat.download.verify import find_damage, find_folders, set_aside
from nanochat.errors import CapacityError, DataError, MissingError, UsageError
from nanochat.paths import Workspace
from tests.download.conftest import SIZES, check_files


def ignore(*_: object) -> None:
    return


@pytest.fixture
def source(new_fetcher, tmp_path: Path) -> Workspace:
    """A workspace with a downloaded data set and an imported one."""
    workspace = Workspace(tmp_path / "source")
    new_fetcher().fetch([Order("them/texts", workspace.tasks / "them/texts", ("data/*.parquet",))])
    write_shards(workspace.dataset("mine"), ["one", "two"], "train")
    write_shards(workspace.dataset("mine"), ["three"], "val")
    return workspace


@pytest.fixture
def archive(source: Workspace, tmp_path: Path) -> Path:
    pack(source, tmp_path / "all.tar", ignore)
    return tmp_path / "all.tar"


def test_what_is_packed_comes_out_the_same_elsewhere(source, archive, tmp_path) -> None:
    other = Workspace(tmp_path / "other")
    steps: list[tuple[int, int]] = []
    packed, kept = unpack(other, archive, ignore, lambda done, total: steps.append((done, total)))
    check_files(Order("them/texts", other.tasks / "them/texts", ()))
    assert verify_dataset(other.dataset("mine")) == load_manifest(source.dataset("mine"))
    assert len(packed) == len(SIZES) + 1 + 3 and kept == 0 and steps[-1][0] == steps[-1][1]
    assert find_damage(find_folders(other)) == []
    assert unpack(other, archive, ignore, ignore)[1] == len(packed)


def test_nothing_to_pack_and_nothing_to_unpack_are_errors(tmp_path) -> None:
    with pytest.raises(MissingError, match="nothing to pack"):
        pack(Workspace(tmp_path), tmp_path / "all.tar", ignore)
    with pytest.raises(MissingError, match="there is no file"):
        unpack(Workspace(tmp_path), tmp_path / "all.tar", ignore, ignore)


def test_an_unpacking_that_was_cut_goes_on(archive, tmp_path) -> None:
    other, cut = Workspace(tmp_path / "other"), tmp_path / "cut.tar"
    body = archive.read_bytes()
    cut.write_bytes(body[: len(body) // 2])
    with pytest.raises(DataError, match="damaged|cut"):
        unpack(other, cut, ignore, ignore)
    assert not list(other.home.rglob("source.json")) and not list(other.home.rglob("*.part"))
    _, kept = unpack(other, archive, ignore, ignore)
    assert kept > 0
    check_files(Order("them/texts", other.tasks / "them/texts", ()))


@pytest.mark.parametrize("position", [0.3, 0.5, 0.7])
def test_a_changed_byte_is_found_and_not_put_into_place(archive, tmp_path, position) -> None:
    body = bytearray(archive.read_bytes())
    body[int(len(body) * position)] ^= 1
    archive.write_bytes(body)
    other = Workspace(tmp_path / "other")
    with pytest.raises(DataError, match="SHA-256 differs"):
        unpack(other, archive, ignore, ignore)
    assert not list(other.home.rglob("source.json"))


def build_tar(path: Path, files: list[tuple[str, bytes]], listed: list[str] | None = None, kind: bytes = b"0") -> None:
    import hashlib

    value = {
        "version": 1,
        "files": [
            {"path": name, "size": len(body), "sha256": hashlib.sha256(body).hexdigest()}
            for name, body in files
            if listed is None or name in listed
        ],
    }
    head = json.dumps(value).encode()
    with tarfile.open(path, "w") as archive:
        for name, body, what in [(LIST, head, b"0"), *((name, body, kind) for name, body in files)]:
            member = tarfile.TarInfo(name)
            member.size, member.type, member.linkname = (len(body) if what == b"0" else 0), what, "/etc/passwd"
            archive.addfile(member, io.BytesIO(body))


@pytest.mark.parametrize(
    "files, options, sentence",
    [
        ([("../escaped", b"x")], {}, "leads out of its folder"),
        ([("/tmp/escaped", b"x")], {}, "leads out of its folder"),
        ([("data/a/../../escaped", b"x")], {}, "leads out of its folder"),
        ([("runs/a/settings.json", b"x")], {}, "no place for a download"),
        ([("data/a/x", b"x"), ("data/a/y", b"y")], {"listed": ["data/a/x"]}, "its list does not name so"),
        ([("data/a/x", b"x")], {"kind": tarfile.SYMTYPE}, "its list does not name so"),
        ([("data/a/x", b"x")], {"kind": tarfile.LNKTYPE}, "its list does not name so"),
    ],
)
def test_an_archive_that_would_escape_or_smuggle_is_refused(tmp_path, files, options, sentence) -> None:
    build_tar(tmp_path / "evil.tar", files, **options)
    with pytest.raises(DataError, match=sentence):
        unpack(Workspace(tmp_path / "home"), tmp_path / "evil.tar", ignore, ignore)
    assert not list(tmp_path.rglob("escaped")) and not list((tmp_path / "home").rglob("y"))


def test_a_link_in_the_workspace_leads_nowhere_else(tmp_path) -> None:
    build_tar(tmp_path / "a.tar", [("data/a/inner/x", b"x")])
    (tmp_path / "home/data/a").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "home/data/a/inner").symlink_to(tmp_path / "outside")
    with pytest.raises(DataError, match="leads out of the workspace"):
        unpack(Workspace(tmp_path / "home"), tmp_path / "a.tar", ignore, ignore)
    assert not list((tmp_path / "outside").iterdir())


def test_what_is_no_pack_is_said(tmp_path) -> None:
    (tmp_path / "a.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(DataError, match="is no pack"):
        unpack(Workspace(tmp_path / "home"), tmp_path / "a.tar", ignore, ignore)
    with tarfile.open(tmp_path / "b.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("data/a/x"))
    with pytest.raises(DataError, match="does not begin with"):
        unpack(Workspace(tmp_path / "home"), tmp_path / "b.tar", ignore, ignore)


def test_another_data_set_of_the_same_name_is_replaced_only_when_told(archive, tmp_path) -> None:
    other = Workspace(tmp_path / "other")
    write_shards(other.dataset("mine"), ["something else"], "train")
    before = load_manifest(other.dataset("mine"))
    with pytest.raises(UsageError, match="holds something else already") as caught:
        unpack(other, archive, ignore, ignore)
    assert caught.value.hint.startswith("--home DIR") and verify_dataset(other.dataset("mine")) == before
    unpack(other, archive, ignore, ignore, replace=True)
    assert verify_dataset(other.dataset("mine")).num_rows("train") == 2


def test_packing_and_unpacking_need_room(source, archive, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1_000}))
    with pytest.raises(CapacityError, match="the archive needs"):
        pack(source, tmp_path / "again.tar", ignore)
    with pytest.raises(CapacityError, match="unpacking needs"):
        unpack(Workspace(tmp_path / "other"), archive, ignore, ignore)
    assert not (tmp_path / "again.tar").exists()


def test_damage_is_found_named_and_repaired_from_the_same_commit(
    server, order, new_fetcher: Callable, tmp_path
) -> None:
    record = new_fetcher().fetch([order])[order.folder]
    server.add("them/texts", "data/test-00000.parquet", b"newer")
    target = order.folder / "data/train-00000.parquet"
    body = bytearray(target.read_bytes())
    body[7] ^= 1
    target.write_bytes(body)
    (order.folder / "data/test-00000.parquet").unlink()
    (order.folder / "data/train-00001.parquet").write_bytes(b"short")
    damages = find_damage([order.folder])
    assert {str(damage).removeprefix(f"{order.folder}/data/") for damage in damages} == {
        "test-00000.parquet: is missing",
        "train-00000.parquet: has other bytes than it was downloaded with",
        "train-00001.parquet: has 5 bytes, not 70,001",
    }
    repaired = new_fetcher().fetch(set_aside(damages, ignore))[order.folder]
    check_files(order)
    assert repaired == record and find_damage([order.folder]) == []
