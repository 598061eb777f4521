import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat.data import documents, holdout
from nanochat.data.folder import import_folder
from nanochat.data.shards import iter_documents, verify_dataset
from nanochat.errors import DataError, MissingError, UsageError


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
    assert (len(train), len(val)) == (report.documents["train"], report.documents["val"])
    assert report.left_out == {
        "hidden files and folders": 1,
        "files of other kinds (.png 1)": 1,
        "documents without text": 2,
    }
    assert report.num_files == 4
    assert {"train": sum(map(len, train)), "val": sum(map(len, val))} == report.chars
    assert 0.09 < report.chars["val"] / report.chars.total() < 0.11  # a text this short
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
    (source / "again.txt").write_text("line 7")
    monkeypatch.setattr(holdout, "BUCKET_BYTES", 1_000)
    report = import_folder(source, tmp_path / "dest", val_share=0.2)
    train, val = (list(iter_documents(tmp_path / "dest", split)) for split in ("train", "val"))
    assert set(train + val) == EVERYTHING
    assert not set(train) & set(val)  # two documents that are the same never part
    assert 0.18 < report.chars["val"] / report.chars.total() < 0.25
    assert not list((tmp_path / "dest").glob(".*"))


def test_validation_text_may_be_given(source: Path, tmp_path: Path) -> None:
    (tmp_path / "val.txt").write_text("held out")
    report = import_folder(source, tmp_path / "dest", val=tmp_path / "val.txt")
    assert list(iter_documents(tmp_path / "dest", "val")) == ["held out"]
    assert report.documents["train"] == len(EVERYTHING)


def test_validation_text_inside_the_source_is_never_trained_on(source: Path, tmp_path: Path) -> None:
    (source / "again.txt").write_text("line 7")  # a copy of a validation document
    report = import_folder(source, tmp_path / "dest", val=source / "c.jsonl")
    train, val = (set(iter_documents(tmp_path / "dest", split)) for split in ("train", "val"))
    assert train == {"plain \u00e9", "# mark", "one", "two"} and val == EVERYTHING - train
    assert (report.num_files, report.left_out["documents that repeat in the validation text"]) == (5, 1)
    assert report.chars.total() == sum(map(len, train | val))
    with pytest.raises(UsageError, match="nothing is left to train on"):
        import_folder(source, tmp_path / "dest", val=source)
    with pytest.raises(UsageError, match="both the training and the validation"):
        import_folder(source / "a.txt", tmp_path / "dest", val=source / "a.txt")
    (tmp_path / "copy.txt").write_text("plain \u00e9")
    with pytest.raises(DataError, match="not in the validation text"):
        import_folder(source / "a.txt", tmp_path / "dest", val=tmp_path / "copy.txt")


def test_one_document_is_enough_with_validation_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("only")
    (tmp_path / "b.txt").write_text("other")
    import_folder(tmp_path / "a.txt", tmp_path / "dest", val=tmp_path / "b.txt")
    assert list(iter_documents(tmp_path / "dest", "train")) == ["only"]


def test_progress_ends_at_the_total(source: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    import_folder(source, tmp_path / "dest", progress=lambda *step: seen.append(step))
    assert seen[-1] == ("reading", seen[-1][2], sum(path.stat().st_size for path in source.rglob("[a-d].*")))


def test_an_import_replaces_what_was_there(source: Path, tmp_path: Path) -> None:
    import_folder(source, tmp_path / "dest")
    import_folder(source / "c.jsonl", tmp_path / "dest")
    texts = {text for split in ("train", "val") for text in iter_documents(tmp_path / "dest", split)}
    assert texts == {f"line {index}" for index in range(300)}
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
        ("a.jsonl", b'{"text": 3}\n', r"a\.jsonl:1: 'text' is int"),
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
    assert error.value.hint == "--column body"
    with pytest.raises(DataError, match="column 'n' of .* holds int64, not text"):
        import_folder(tmp_path / "source", tmp_path / "dest", column="n")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "it is empty"),
        ({"a.png": b"x"}, r"left out: 1 files of other kinds \(.png 1\)"),
        ({"a.txt": b" \n"}, "holds any text"),
        ({"a.txt": b"1"}, "1 characters are too few"),
    ],
)
def test_too_little_text_is_said(tmp_path: Path, files: dict[str, bytes], said: str) -> None:
    (tmp_path / "source").mkdir()
    for name, data in files.items():
        write(tmp_path / "source" / name, data)
    with pytest.raises(DataError, match=said):
        import_folder(tmp_path / "source", tmp_path / "dest")
    assert not (tmp_path / "dest").exists()


def test_wrong_places_are_said(source: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no folder or file"):
        import_folder(tmp_path / "nowhere", tmp_path / "dest")
    with pytest.raises(UsageError, match="inside its own source"):
        import_folder(source, source / "dest")
    with pytest.raises(DataError, match="neither a folder nor a file"):
        import_folder(Path("/dev/null"), tmp_path / "dest")
    with pytest.raises(DataError, match="is none of"):
        import_folder(source / "e.png", tmp_path / "dest")


def read_all(dest: Path) -> list[str]:
    return [text for split in ("train", "val") for text in iter_documents(dest, split)]


def test_validation_is_drawn_by_characters_not_by_documents(tmp_path: Path) -> None:
    book = "\n".join(f"{index} is a number of the book" for index in range(30_000))
    write(tmp_path / "source" / "book.txt", book.encode())
    write(tmp_path / "source" / "note.txt", b"a short note.")
    for seed in range(3):
        report = import_folder(tmp_path / "source", tmp_path / f"dest{seed}", seed=seed)
        assert 50_000 <= report.chars["val"] <= 60_000 and report.num_stretches == 1
        assert report.chars.total() == len(book) + 13
        lines = "".join(read_all(tmp_path / f"dest{seed}")).replace("a short note.", "\n").split("\n")
        assert sorted(filter(None, lines)) == sorted(book.split("\n"))  # no line is cut


def test_documents_that_are_not_long_are_never_cut(tmp_path: Path) -> None:
    texts = [f"{index} " + "word " * 800 for index in range(250)]  # a megabyte of 4 kB each
    write(tmp_path / "source" / "a.jsonl", "\n".join(json.dumps({"text": text}) for text in texts).encode())
    report = import_folder(tmp_path / "source", tmp_path / "dest")
    assert report.num_stretches == 0 and 50_000 <= report.chars["val"] < 55_000
    assert sorted(read_all(tmp_path / "dest")) == sorted(texts)


def test_one_text_file_is_a_data_set(tmp_path: Path) -> None:
    write(tmp_path / "source" / "a.txt", ("word " * 5_000).encode())
    report = import_folder(tmp_path / "source" / "a.txt", tmp_path / "dest")
    assert report.chars == {"train": 22_500, "val": 2_500}


def test_a_long_document_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("PIECE_CHARS", 1_000), ("BREAK_CHARS", 50), ("BLOCK_BYTES", 300)):
        monkeypatch.setattr(documents, name, value)
    text = " ".join(str(index) for index in range(2_000)) + " \u00e9nd"
    write(tmp_path / "source" / "a.txt", text.encode())
    pieces = list(documents.iter_file(tmp_path / "source" / "a.txt", reading := documents.Reading()))
    assert "".join(pieces) == text and all(piece.endswith(" ") for piece in pieces[:-1])
    assert reading.num_cut == 1 and max(map(len, pieces)) <= 2_000


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    write(tmp_path / "big" / "a.txt", b"linked text, which is long enough")
    write(tmp_path / "source" / "b.txt", b"text of its own")
    (tmp_path / "source" / "books").symlink_to("../big")
    (tmp_path / "source" / "copy").symlink_to("../big")
    (tmp_path / "big" / "back").symlink_to("../source")
    (tmp_path / "source" / "c.txt").symlink_to("b.txt")
    (tmp_path / "source" / "d.txt").symlink_to("nowhere")
    report = import_folder(tmp_path / "source", tmp_path / "dest", val_share=0.2)
    assert sorted(read_all(tmp_path / "dest")) == ["linked text, which is long enough", "text of its own"]
    assert report.left_out == {
        "folders that are read under another name": 2,
        "files that are read under another name": 1,
        "links to nothing": 1,
    }


@pytest.mark.parametrize(
    "kind",
    [
        pa.large_string(),
        pa.string_view(),
        pa.binary(),
        pa.large_binary(),
        pa.binary_view(),
        pa.dictionary(pa.int32(), pa.string()),
    ],
    ids=str,
)
def test_text_columns_of_every_layout_are_read(tmp_path: Path, kind: pa.DataType) -> None:
    texts = ["one \u00e9", None, "two", "one \u00e9", "", "three"]
    array = pa.array([text and text.encode() for text in texts] if "binary" in str(kind) else texts, kind)
    pq.write_table(pa.table({"text": array}), tmp_path / "a.parquet")
    assert pq.read_schema(tmp_path / "a.parquet").field("text").type == kind
    found = list(documents.iter_file(tmp_path / "a.parquet", reading := documents.Reading()))
    assert found == ["one \u00e9", "two", "one \u00e9", "three"] and reading.left_out["documents without text"] == 2


def test_a_null_of_jsonl_is_an_empty_document(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": null}\n{"body": "text"}\n{"body": " "}\n')
    found = list(documents.iter_file(tmp_path / "a.jsonl", reading := documents.Reading("body")))
    assert found == ["text"] and reading.left_out["documents without text"] == 2


def test_a_row_that_is_not_utf_8_is_named_and_can_be_left_out(tmp_path: Path) -> None:
    broken = pa.Array.from_buffers(  # two texts, of which the second is one byte of Latin-1
        pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\4\0\0\0\5\0\0\0"), pa.py_buffer(b"text\xe9")]
    )
    pq.write_table(pa.table({"text": broken}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: row 2 of column 'text' is not UTF-8") as caught:
        list(documents.iter_file(tmp_path / "a.parquet", documents.Reading()))
    assert caught.value.hint.startswith("--skip-bad")
    reading = documents.Reading(skip_bad=True)
    assert list(documents.iter_file(tmp_path / "a.parquet", reading)) == ["text"]
    assert reading.left_out == {"rows that are not UTF-8": 1}


def test_what_cannot_be_read_is_left_out_and_counted(tmp_path: Path) -> None:
    lines = [b'{"text": "fine"}', b"not json", b"[1]", b'{"other": 1}', b'{"text": 1}', b"\xff", b'{"text": "\\ud800"}']
    write(tmp_path / "source" / "a.jsonl", b"\n".join(lines))
    write(tmp_path / "source" / "b.txt", b"\xff")
    write(tmp_path / "source" / "c.parquet", b"PAR1")
    pq.write_table(pa.table({"body": ["a"]}), tmp_path / "source" / "d.parquet")
    write(tmp_path / "source" / "e.txt", b"fine as well")
    report = import_folder(tmp_path / "source", tmp_path / "dest", skip_bad=True)
    assert sorted(read_all(tmp_path / "dest")) == ["fine", "fine as well"]
    assert set(report.left_out.values()) == {1} and len(report.left_out) == 9


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-le", "utf-32"])
def test_text_in_another_encoding_is_read_where_it_is_named(tmp_path: Path, encoding: str) -> None:
    write(tmp_path / "source" / "a.txt", "na\u00efve caf\u00e9".encode(encoding))
    write(tmp_path / "source" / "b.txt", "d\u00e9j\u00e0 vu".encode())
    with pytest.raises(DataError, match=r"a\.txt is not UTF-8") as caught:
        import_folder(tmp_path / "source", tmp_path / "dest")
    assert caught.value.hint.startswith(f"--encoding {encoding}")
    report = import_folder(tmp_path / "source", tmp_path / "dest", encoding=encoding)
    assert sorted(read_all(tmp_path / "dest")) == ["d\u00e9j\u00e0 vu", "na\u00efve caf\u00e9"]
    assert report.num_recoded == 1


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32-be"])
def test_lines_whose_ends_are_more_than_a_byte_are_read(tmp_path: Path, encoding: str) -> None:
    """U+0A0A has the byte of a line end twice."""
    texts = ["na\u00efve", "\u0a0a two", "three"]
    lines = "\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts)
    write(tmp_path / "source" / "a.jsonl", lines.encode(encoding))
    write(tmp_path / "source" / "b.jsonl", b'{"text": "plain"}')
    with pytest.raises(DataError, match=r"a\.jsonl is not UTF-8: its bytes are those of UTF-") as caught:
        import_folder(tmp_path / "source", tmp_path / "dest")
    assert caught.value.hint == f"--encoding {encoding}"
    report = import_folder(tmp_path / "source", tmp_path / "dest", encoding=encoding)
    assert sorted(read_all(tmp_path / "dest")) == sorted([*texts, "plain"]) and report.num_recoded == 1
    with pytest.raises(DataError, match=r"a\.jsonl is not ASCII"):
        import_folder(tmp_path / "source", tmp_path / "dest", encoding="ascii")
    report = import_folder(tmp_path / "source", tmp_path / "new", encoding="ascii", skip_bad=True)
    assert report.left_out["files that are not ASCII"] == 1


def test_ascii_text_in_utf_16_is_not_taken_for_utf_8(tmp_path: Path) -> None:
    """Its bytes are valid UTF-8, each second one zero."""
    write(tmp_path / "source" / "a.txt", "plain".encode("utf-16-le"))
    with pytest.raises(DataError, match="its bytes are those of UTF-16-LE") as caught:
        import_folder(tmp_path / "source", tmp_path / "dest")
    assert caught.value.hint == "--encoding utf-16-le"
    import_folder(tmp_path / "source", tmp_path / "dest", encoding="utf-16-le")
    assert "".join(read_all(tmp_path / "dest")) == "plain"


def test_an_encoding_that_reads_nothing_is_refused(source: Path, tmp_path: Path) -> None:
    for encoding in ("undefined", "rot13", "nosuch"):
        with pytest.raises(UsageError, match="there is no encoding"):
            import_folder(source, tmp_path / "dest", encoding=encoding)


def test_an_interrupted_import_leaves_what_was_there(source: Path, tmp_path: Path, monkeypatch) -> None:
    before = import_folder(source, tmp_path / "dest").manifest
    listed = sorted((tmp_path / "dest").iterdir())
    for name in (tmp_path / "dest", tmp_path / "new"):
        with pytest.raises(KeyboardInterrupt):
            import_folder(source, name, progress=interrupt)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("nanochat.data.folder.read_texts", interrupt)  # when the text to train on is written
            import_folder(source, name)
    assert verify_dataset(tmp_path / "dest") == before and sorted((tmp_path / "dest").iterdir()) == listed
    assert not (tmp_path / "new").exists()


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_errors_of_the_system_are_sentences(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(source / "deep"))

    (tmp_path / "file").write_text("no folder")
    with pytest.raises(DataError, match="cannot be written"):
        import_folder(source, tmp_path / "file" / "dest")
    for place in ("os.scandir", "pathlib.Path.is_file"):
        with monkeypatch.context() as patch, pytest.raises(DataError, match="cannot read .*deep: Permission") as caught:
            patch.setattr(place, fail)
            import_folder(source, tmp_path / "dest")
        assert caught.value.hint == f"ls -ld {source / 'deep'}"
    assert not (tmp_path / "dest").exists()


def test_a_zero_byte_makes_no_text_utf_16(tmp_path: Path) -> None:
    for name, text in (("odd.txt", "a\0b NUL text\n"), ("long.txt", "\0" + "plain text " * 500 + "x")):
        write(tmp_path / "source" / name, text.encode())
    report = import_folder(tmp_path / "source", tmp_path / "dest")
    assert sum(report.chars.values()) == 13 + 5502
