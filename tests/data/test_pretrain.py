import json
import shutil
import threading
from itertools import islice
from pathlib import Path

import pytest
import torch

from nanochat.data import pretrain
from nanochat.data.packing import Packing
from nanochat.data.pretrain import LAPS, PretrainLoader
from nanochat.data.shards import write_shards
from nanochat.errors import DataError, UsageError
from tests.fakes import ByteTokenizer

TEXTS = [f"<{index}>" + "abc"[index % 3] * (index * 7 % 60) for index in range(120)]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    write_shards(tmp_path, TEXTS, "train", shard_bytes=1_500, group_documents=10)
    write_shards(tmp_path, TEXTS[:50], "val", group_documents=10)
    return tmp_path


def read(loader: PretrainLoader, num_batches: int) -> list[torch.Tensor]:
    with loader:
        return [torch.stack(tuple(batch)) for batch in islice(loader, num_batches)]


def documents_in(rows: list[torch.Tensor]) -> str:
    """The bytes of many rows, documents split at bos."""
    return ByteTokenizer().decode(torch.cat([batch[0].flatten() for batch in rows]).tolist())


def test_targets_are_the_next_tokens(dataset: Path) -> None:
    for batch in read(PretrainLoader(dataset, "train", ByteTokenizer(), rows=3, context=32), 5):
        assert batch.shape == (2, 3, 32) and batch.dtype == torch.int64
        assert torch.equal(batch[0, :, 1:], batch[1, :, :-1])
        assert (batch[0, :, 0] == ByteTokenizer.bos_id).all()


def test_an_epoch_holds_every_token_of_every_document(dataset: Path) -> None:
    tokens: list[int] = []
    with PretrainLoader(dataset, "train", ByteTokenizer(), rows=1, context=32) as loader:
        for batch in loader:
            if loader.epoch:
                break
            tokens += [*batch.ids[0].tolist(), int(batch.targets[0, -1])]
        assert loader.dropped_share == 0
    expected = sorted("".join(TEXTS).encode())
    seen = sorted(token for token in tokens if token < 256)
    assert len(expected) - 33 < len(seen) <= len(expected)


@pytest.mark.parametrize("stop", [1, 2, 7, 40])
def test_resume_continues_bit_for_bit(dataset: Path, stop: int) -> None:
    def build(cursor: dict | None = None) -> PretrainLoader:
        return PretrainLoader(
            dataset, "train", ByteTokenizer(), rows=3, context=32, rank=1, world_size=3, cursor=cursor
        )

    whole = read(build(), stop + 30)
    with build() as loader:
        for _ in islice(loader, stop):
            pass
        cursor = json.loads(json.dumps(loader.cursor()))
        epoch = loader.epoch
    with build(cursor) as loader:
        assert not loader.changed and loader.epoch == epoch and loader.cursor() == cursor
        rest = [torch.stack(tuple(batch)) for batch in islice(loader, 30)]
    assert all(torch.equal(a, b) for a, b in zip(whole[stop:], rest, strict=True))


def read_steps(dataset: Path, world_sizes: list[int], rows_a_step: int = 12) -> list[set[tuple[int, ...]]]:
    """The rows of each step, of all ranks together; before every step the world changes and resumes."""
    steps, cursor = [], None
    for world_size in world_sizes:
        rows, cursors = set(), []
        for rank in range(world_size):
            options = {"rank": rank, "world_size": world_size, "cursor": cursor}
            with PretrainLoader(dataset, "train", ByteTokenizer(), rows_a_step // world_size, 32, **options) as loader:
                assert not loader.changed
                batch = next(loader)
                cursors.append(json.loads(json.dumps(loader.cursor())))
            rows |= set(map(tuple, torch.cat((batch.ids, batch.targets[:, -1:]), dim=1).tolist()))
        assert all(found == cursors[0] for found in cursors)
        steps.append(rows)
        cursor = cursors[0]
    return steps


def test_a_step_has_the_same_rows_on_any_number_of_ranks_and_across_changes(dataset: Path) -> None:
    alone = read_steps(dataset, [1] * 9)
    assert read_steps(dataset, [3] * 9) == alone
    assert read_steps(dataset, [1, 2, 4, 1, 6, 12, 3, 2, 1]) == alone


def test_one_tiny_document_repeats(tmp_path: Path) -> None:
    write_shards(tmp_path, ["hi"], "train")
    with PretrainLoader(tmp_path, "train", ByteTokenizer(), rows=2, context=8) as loader:
        batch = next(loader)
        assert loader.epoch > 0
    assert ByteTokenizer().decode(batch.ids[0].tolist()) == "<|bos|>hi<|bos|>hi<|bos|>h"


def test_a_document_longer_than_many_rows_continues(tmp_path: Path) -> None:
    text = "".join(map(str, range(100)))
    write_shards(tmp_path, [text], "val")
    rows = read(PretrainLoader(tmp_path, "val", ByteTokenizer(), rows=1, context=16), 99)
    tokens = [[*row[0, 0].tolist(), int(row[1, 0, -1])] for row in rows]
    pieces = [bytes(token for token in row if 0 <= token < 256).decode() for row in tokens]
    assert "".join(sorted(pieces, key=text.index)) == text


def test_rows_come_shuffled_and_otherwise_in_every_epoch(tmp_path: Path) -> None:
    write_shards(tmp_path, [chr(65 + index) * 64 for index in range(26)], "train")  # four rows each
    with PretrainLoader(tmp_path, "train", ByteTokenizer(), 26, 16) as loader:
        first, second = (["".join(map(chr, ids[:, 1])) for ids in (next(loader).ids for _ in range(4))] for _ in "ab")
    assert sorted("".join(first)) == sorted(letter for index in range(26) for letter in chr(65 + index) * 4)
    assert all(len(set(batch)) > 10 for batch in first) and first != second


LONG = ["".join(chr(0x100 + book) if place % 2 else chr(place % 90 + 33) for place in range(900)) for book in range(24)]
"""Documents of about 40 rows, each with a character of its own."""


@pytest.fixture
def books(tmp_path: Path) -> Path:
    write_shards(tmp_path / "books", LONG, "train", group_documents=4)
    return tmp_path / "books"


def read_epoch(loader: PretrainLoader) -> list[tuple[int, ...]]:
    """The rows of the first epoch, one at a time, and of the next the row that ends it."""
    rows = []
    for batch in loader:
        rows.append((*batch.ids[0].tolist(), int(batch.targets[0, -1])))
        if loader.epoch:
            break
    return rows


@pytest.mark.parametrize("stretch_bytes", [pretrain.STRETCH_BYTES, 12_000])
def test_long_documents_are_spread_over_laps_and_nothing_is_lost_or_seen_twice(
    books: Path, monkeypatch: pytest.MonkeyPatch, stretch_bytes: int
) -> None:
    monkeypatch.setattr(pretrain, "STRETCH_BYTES", stretch_bytes)
    with PretrainLoader(books, "train", ByteTokenizer(), rows=1, context=32) as loader:
        assert loader.cursor()["num_laps"] == LAPS
        rows = read_epoch(loader)
    tokens = sorted(token for row in rows[:-1] for token in row if token < 256)
    expected = sorted("".join(LONG).encode())
    assert len(expected) - 33 < len(tokens) <= len(expected)
    text = ByteTokenizer().decode([token for row in rows[: len(rows) // 8] for token in row])
    seen = {ord(char) - 0x100 for char in text if 0x100 <= ord(char) < 0x200}
    # A run that ends here has seen a part of every document, or of those of the first stretch.
    assert seen == set(range(24 if stretch_bytes > 12_000 else 4))


@pytest.mark.parametrize("stretch_bytes", [pretrain.STRETCH_BYTES, 12_000])
def test_any_lap_is_resumed_bit_for_bit(books: Path, monkeypatch: pytest.MonkeyPatch, stretch_bytes: int) -> None:
    monkeypatch.setattr(pretrain, "STRETCH_BYTES", stretch_bytes)

    def build(cursor: dict | None = None) -> PretrainLoader:
        return PretrainLoader(books, "train", ByteTokenizer(), rows=3, context=32, cursor=cursor)

    whole = read(build(), 1300)
    laps, cursor = set(), {}
    for stop in (1, 20, 57, 58, 300, 467, 900):
        with build() as loader:
            for _ in islice(loader, stop):
                pass
            cursor = json.loads(json.dumps(loader.cursor()))
        laps.add(cursor["lap"])
        with build(cursor) as loader:
            assert not loader.changed and loader.cursor() == cursor
            rest = [torch.stack(tuple(batch)) for batch in islice(loader, 400)]
        assert all(torch.equal(a, b) for a, b in zip(whole[stop:], rest, strict=False))
    assert cursor["epoch"] == 2 and cursor["opening"] and len(laps) > 3


def test_a_group_is_tokenized_once_in_an_epoch(books: Path) -> None:
    class Counting(ByteTokenizer):
        num_texts = 0

        def encode_batch(self, texts: list[str]) -> list[list[int]]:
            self.num_texts += len(texts)
            return super().encode_batch(texts)

    tokenizer = Counting()
    with PretrainLoader(books, "train", tokenizer, rows=1, context=32, prefetched_batches=1) as loader:
        rows = read_epoch(loader)
    assert len(rows) > 900 and len(LONG) <= tokenizer.num_texts <= len(LONG) + 8  # the next epoch has begun


def test_cropped_rows_drop_the_ends_of_long_documents_and_resume_exactly(books: Path) -> None:
    def build(cursor: dict | None = None, packing: Packing = "crop") -> PretrainLoader:
        return PretrainLoader(books, "train", ByteTokenizer(), 1, 32, cursor=cursor, packing=packing)

    with build() as loader:
        assert loader.cursor()["num_laps"] == 1
        rows = read_epoch(loader)
        assert loader.dropped_share == pytest.approx(1 - 33 / 1351, abs=0.001)
    assert len(rows) == len(LONG) + 1 and all(row[0] == ByteTokenizer.bos_id for row in rows)
    beginnings = {tuple(text.encode()[:32]) for text in LONG}
    assert {row[1:] for row in rows[:-1]} == beginnings
    with build() as loader:
        whole = [next(loader).ids.tolist() for _ in range(30)]
    with build() as loader:
        for _ in islice(loader, 11):
            pass
        cursor = json.loads(json.dumps(loader.cursor()))
    with build(cursor) as loader:
        assert not loader.changed and [next(loader).ids.tolist() for _ in range(19)] == whole[11:]
    with build(cursor, "cut") as loader:
        assert loader.changed


def test_a_cursor_from_before_there_were_laps_goes_on_without_them(books: Path) -> None:
    old = {"version": 2, "groups": 6, "row_tokens": 33, "epoch": 0, "position": 2, "row": 5, "carry": [[256, 33]]}
    with PretrainLoader(books, "train", ByteTokenizer(), 1, 32, cursor={**old, "tokens_in_epoch": 700}) as loader:
        assert not loader.changed
        next(loader)
        assert loader.cursor() == {**loader.cursor(), "num_laps": 1, "position": 2, "row": 6, "carry": [[256, 33]]}


@pytest.mark.parametrize("stretch_bytes", [pretrain.STRETCH_BYTES, 12_000])
def test_other_data_resumes_at_about_the_same_share_of_the_epoch(
    books: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stretch_bytes: int
) -> None:
    with PretrainLoader(books, "train", ByteTokenizer(), 1, 32) as loader:
        for _ in islice(loader, 400):
            pass
        cursor = loader.cursor()
    assert 0.35 < cursor["share"] < 0.45
    write_shards(tmp_path / "more", LONG, "train", group_documents=2)
    monkeypatch.setattr(pretrain, "STRETCH_BYTES", stretch_bytes)
    with PretrainLoader(tmp_path / "more", "train", ByteTokenizer(), 1, 32, cursor=cursor) as loader:
        assert loader.changed and loader.epoch == 0
        assert loader.cursor()["share"] == pytest.approx(cursor["share"], abs=0.02)


def collect_validation(dataset: Path, rows: int, world_size: int, max_tokens: int | None) -> list[tuple[int, ...]]:
    """All scored (input, target) rows, over all ranks."""
    found = []
    counts = set()
    for rank in range(world_size):
        batches = read(
            PretrainLoader(dataset, "val", ByteTokenizer(), rows, 32, rank, world_size, max_tokens=max_tokens), 999
        )
        counts.add(len(batches))
        for batch in batches:
            for ids, targets in zip(batch[0], batch[1], strict=True):
                scored = targets != -1
                if scored.any():
                    found.append((*ids[scored].tolist(), *targets[scored].tolist()))
    assert len(counts) == 1  # every rank makes the same number of steps, or a collective would hang
    return sorted(found)


@pytest.mark.parametrize("max_tokens", [None, 1, 33, 500])
@pytest.mark.parametrize(("rows", "world_size"), [(4, 1), (1, 3), (2, 4), (64, 2)])
def test_validation_scores_the_same_tokens_on_any_number_of_ranks(
    dataset: Path, rows: int, world_size: int, max_tokens: int | None
) -> None:
    expected = collect_validation(dataset, 1, 1, max_tokens)
    assert collect_validation(dataset, rows, world_size, max_tokens) == expected
    if max_tokens:
        assert sum(len(row) // 2 for row in expected) == max_tokens


def test_validation_scores_every_byte_once(dataset: Path) -> None:
    batches = read(PretrainLoader(dataset, "val", ByteTokenizer(), 3, 32), 999)
    targets = torch.cat([batch[1].flatten() for batch in batches])
    assert sorted(targets[(targets >= 0) & (targets < 256)].tolist()) == sorted("".join(TEXTS[:50]).encode())


def test_other_data_resumes_at_about_the_same_place_and_says_so(dataset: Path, tmp_path: Path) -> None:
    with PretrainLoader(dataset, "train", ByteTokenizer(), 1, 32) as loader:
        for _ in islice(loader, 40):
            pass
        cursor = loader.cursor()
    write_shards(tmp_path / "more", TEXTS * 2, "train", group_documents=10)
    with PretrainLoader(tmp_path / "more", "train", ByteTokenizer(), 1, 32, cursor=cursor) as loader:
        assert loader.changed
        assert loader.epoch == cursor["epoch"] and loader.cursor()["position"] == 2 * cursor["position"] > 0


def test_other_text_of_the_same_counts_is_not_taken_for_the_same(dataset: Path, tmp_path: Path) -> None:
    with PretrainLoader(dataset, "train", ByteTokenizer(), 1, 32) as loader:
        next(loader)
        cursor = json.loads(json.dumps(loader.cursor()))
    write_shards(tmp_path / "other", [text[::-1] for text in TEXTS], "train", group_documents=10)
    with PretrainLoader(tmp_path / "other", "train", ByteTokenizer(), 1, 32, cursor=cursor) as loader:
        assert loader.changed == "the training text is another one" and loader.cursor()["row"] == 0
        assert loader.cursor() | {"data_hash": 0} == cursor | {"data_hash": 0, "row": 0, "carry": [], "opening": []}
    del cursor["data_hash"]  # as an older version saved it: counts decide
    with PretrainLoader(tmp_path / "other", "train", ByteTokenizer(), 1, 32, cursor=cursor) as loader:
        assert not loader.changed


def test_a_shard_of_another_size_than_its_manifest_says_is_refused(dataset: Path, tmp_path: Path) -> None:
    write_shards(tmp_path / "other", ["one text"], "train")
    shutil.copy(tmp_path / "other" / "shard_00000.parquet", dataset / "shard_00000.parquet")
    with pytest.raises(DataError, match=r"shard_00000.parquet has [\d,]+ bytes, shards.json says [\d,]+"):
        PretrainLoader(dataset, "train", ByteTokenizer(), 1, 32)


def test_errors_of_the_thread_reach_the_caller(dataset: Path) -> None:
    before = threading.active_count()
    loader = PretrainLoader(dataset, "train", ByteTokenizer(), 1, 32)
    loader.close()
    (dataset / "shard_00000.parquet").write_bytes((dataset / "shard_00000.parquet").read_bytes()[:200])
    with pytest.raises(DataError, match="shard_00000"):
        PretrainLoader(dataset, "train", ByteTokenizer(), 1, 32)

    class Broken(ByteTokenizer):
        def encode_batch(self, texts: list[str]) -> list[list[int]]:
            raise RuntimeError("no tokens today")

    loader = PretrainLoader(dataset, "val", Broken(), 1, 32)
    with pytest.raises(RuntimeError, match="no tokens today"):
        next(loader)
    loader.close()
    assert threading.active_count() == before


def test_text_that_is_all_empty_is_said(tmp_path: Path) -> None:
    write_shards(tmp_path, ["", ""], "train")
    with PretrainLoader(tmp_path, "train", ByteTokenizer(), 1, 8) as loader:
        with pytest.raises(DataError, match="no text"):
            next(loader)


@pytest.mark.parametrize("cursor", [{}, {"version": 1}, {"version": 2, "epoch": "x"}])
def test_a_broken_cursor_is_said(dataset: Path, cursor: dict) -> None:
    with pytest.raises(DataError, match="cursor"):
        PretrainLoader(dataset, "train", ByteTokenizer(), 1, 32, cursor=cursor)
    with pytest.raises(UsageError, match="one pass"):
        PretrainLoader(dataset, "val", ByteTokenizer(), 1, 32, cursor=cursor)
