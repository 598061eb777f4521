import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat.data import folder
from nanochat.data.folder import import_folder
from nanochat.data.shards import iter_documents, verify_dataset
from nanochat.errors import DataError, UsageError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    (path / "deep").mkdir(parents=True)
    (path / "a.txt").write_bytes("\ufeffplain \u00e9".encode())
    (path / "deep" / "b.MD").write_text("# mark")
    (path / "c.jsonl").write_text("\n".join(json.dumps({"text": f"line {index}"}) for index in range(300)) + "\n\n")
    pq.write_table(pa.table({"text": ["one", None, "  ", "two"]}), path / "d.parquet")
    (path / "e.png").write_bytes(b"\x89PNG")
    (path / ".hidden.txt").write_text("hidden")
    return path


EVERYTHING = {"plain \u00e9", "# mark", "one", "two", *(f"line {index}" for index in range(300))}


def test_every_document_of_every_kind_arrives_once(source: Path, tmp_path: Path) -> None:
    report = import_folder(source, tmp_path / "dest")
    train, val = (list(iter_documents(tmp_path / "dest", split)) for split in ("train", "val"))
    assert sorted(train + val) == sorted(EVERYTHING)
    assert (len(train), len(val)) == (report.train_documents, report.val_documents) == (301, 3)
    assert (report.skipped_documents, report.ignored_files, report.num_files) == (2, 1, 4)
    assert report.num_chars == sum(map(len, EVERYTHING))
    assert verify_dataset(tmp_path / "dest") == report.manifest


def test_the_order_is_shuffled_by_the_seed(source: Path, tmp_path: Path) -> None:
    hashes = [
        import_folder(source, tmp_path / f"dest{index}", seed=seed).manifest.hash
        for index, seed in enumerate((1, 1, 2))
    ]
    assert hashes[0] == hashes[1] != hashes[2]
    assert list(iter_documents(tmp_path / "dest0", "train")) != sorted(iter_documents(tmp_path / "dest0", "train"))


def test_a_folder_larger_than_memory_passes_through_buckets(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "BUCKET_BYTES", 1_000)
    import_folder(source, tmp_path / "dest")
    train, val = (list(iter_documents(tmp_path / "dest", split)) for split in ("train", "val"))
    assert sorted(train + val) == sorted(EVERYTHING)
    assert not list((tmp_path / "dest").glob(".*"))


def test_validation_text_may_be_given(source: Path, tmp_path: Path) -> None:
    (tmp_path / "val.txt").write_text("held out")
    report = import_folder(source, tmp_path / "dest", val=tmp_path / "val.txt")
    assert list(iter_documents(tmp_path / "dest", "val")) == ["held out"]
    assert report.train_documents == len(EVERYTHING)


def test_validation_text_inside_the_source_is_never_trained_on(source: Path, tmp_path: Path) -> None:
    (source / "again.txt").write_text("line 7")  # a copy of a validation document
    report = import_folder(source, tmp_path / "dest", val=source / "c.jsonl")
    train, val = (set(iter_documents(tmp_path / "dest", split)) for split in ("train", "val"))
    assert train == {"plain \u00e9", "# mark", "one", "two"} and val == EVERYTHING - train
    assert (report.num_files, report.repeated_documents) == (5, 1)
    assert report.num_chars == sum(map(len, train | val))
    with pytest.raises(UsageError, match="nothing is left to train on"):
        import_folder(source, tmp_path / "dest", val=source)
    with pytest.raises(UsageError, match="both the training and the validation"):
        import_folder(source / "a.txt", tmp_path / "dest", val=source / "a.txt")
    (tmp_path / "copy.txt").write_text("plain \u00e9")
    with pytest.raises(UsageError, match="not in the validation text"):
        import_folder(source / "a.txt", tmp_path / "dest", val=tmp_path / "copy.txt")


def test_one_document_is_enough_with_validation_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("only")
    (tmp_path / "b.txt").write_text("other")
    import_folder(tmp_path / "a.txt", tmp_path / "dest", val=tmp_path / "b.txt")
    assert list(iter_documents(tmp_path / "dest", "train")) == ["only"]


def test_progress_ends_at_the_total(source: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    import_folder(source, tmp_path / "dest", progress=lambda done, total: seen.append((done, total)))
    assert len(seen) == 4 and seen[-1][0] == seen[-1][1]


def test_an_import_replaces_what_was_there(source: Path, tmp_path: Path) -> None:
    import_folder(source, tmp_path / "dest")
    import_folder(source / "c.jsonl", tmp_path / "dest")
    assert len(list(iter_documents(tmp_path / "dest", "train"))) == 297
    assert len(list((tmp_path / "dest").iterdir())) == 3


def test_the_same_text_has_the_same_hash_however_often_it_is_imported(source: Path, tmp_path: Path) -> None:
    first, second = (import_folder(source, tmp_path / "dest").manifest for _ in range(2))
    assert first.hash == second.hash and first.shards[0].name != second.shards[0].name


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return path.parent


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.txt", b"abc\xff", r"a\.txt is not UTF-8.*byte 3"),
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', r"a\.jsonl:2 is not JSON"),
        ("a.jsonl", b'{"text": "x"}\n\n[1]\n', r"a\.jsonl:3 is not a JSON object"),
        ("a.jsonl", b'{"body": "x", "id": 1}\n', r"a\.jsonl:1 has no key 'text'; its keys are 'body', 'id'"),
        ("a.jsonl", b'{"text": null}\n', r"a\.jsonl:1: 'text' is NoneType"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', r"a\.jsonl:1.*surrogate"),
        ("a.jsonl", b'{"text": "\xff"}\n', r"a\.jsonl:1 is not UTF-8"),
        ("a.parquet", b"PAR1", r"a\.parquet is not a readable parquet file"),
        ("a.parquet", b"", r"a\.parquet is not a readable parquet file"),
    ],
)
def test_a_bad_file_is_named_and_leaves_no_data_set(tmp_path: Path, name: str, data: bytes, said: str) -> None:
    with pytest.raises(DataError, match=said):
        import_folder(write(tmp_path / "source" / name, data), tmp_path / "dest")
    assert not (tmp_path / "dest").exists()


def test_a_failed_import_keeps_the_old_data_set(source: Path, tmp_path: Path) -> None:
    before = import_folder(source, tmp_path / "dest").manifest
    with pytest.raises(DataError):
        import_folder(write(tmp_path / "bad" / "a.txt", b"\xff"), tmp_path / "dest")
    assert verify_dataset(tmp_path / "dest") == before
    assert len(list((tmp_path / "dest").iterdir())) == 3


def test_a_missing_column_lists_the_columns(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    pq.write_table(pa.table({"body": ["a"], "n": [1]}), tmp_path / "source" / "a.parquet")
    with pytest.raises(DataError, match=r"no column 'text'; its columns are body \(string\), n \(int64\)") as error:
        import_folder(tmp_path / "source", tmp_path / "dest")
    assert "--column" in error.value.hint
    with pytest.raises(DataError, match="column 'n' of .* holds int64, not text"):
        import_folder(tmp_path / "source", tmp_path / "dest", column="n")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "it is empty"),
        ({"a.png": b"x"}, "its 1 files are of other kinds"),
        ({"a.txt": b" \n"}, "holds any text"),
        ({"a.txt": b"one"}, "there is one document"),
    ],
)
def test_too_little_text_is_a_usage_error(tmp_path: Path, files: dict[str, bytes], said: str) -> None:
    (tmp_path / "source").mkdir()
    for name, data in files.items():
        write(tmp_path / "source" / name, data)
    with pytest.raises(UsageError, match=said):
        import_folder(tmp_path / "source", tmp_path / "dest")
    assert not (tmp_path / "dest").exists()


def test_wrong_places_are_usage_errors(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no folder or file"):
        import_folder(tmp_path / "nowhere", tmp_path / "dest")
    with pytest.raises(UsageError, match="inside its own source"):
        import_folder(source, source / "dest")
    with pytest.raises(UsageError, match="is none of"):
        import_folder(source / "e.png", tmp_path / "dest")
