import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.data.packing import pack_cropped, pack_documents, pack_whole

BOS = 0


def number_documents(lengths: list[int]) -> list[np.ndarray]:
    """Documents whose tokens are all different: bos, then the next whole numbers."""
    ends = np.cumsum([0, *lengths]) + 1
    return [np.array([BOS, *range(start, end)], dtype=np.int32) for start, end in zip(ends[:-1], ends[1:], strict=True)]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 40), max_size=40), st.integers(2, 17))
def test_packing_loses_nothing_and_repeats_nothing(lengths: list[int], row_tokens: int) -> None:
    rows, rest = pack_documents(number_documents(lengths), row_tokens, BOS)
    tokens = np.concatenate([rows.ravel(), *rest]) if rest else rows.ravel()
    assert sorted(tokens[tokens != BOS].tolist()) == list(range(1, sum(lengths) + 1))
    assert sum(map(len, rest)) < row_tokens


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 40), max_size=40), st.integers(2, 17))
def test_every_row_starts_with_bos_and_every_piece_continues_its_document(lengths: list[int], row_tokens: int) -> None:
    rows, rest = pack_documents(number_documents(lengths), row_tokens, BOS)
    starts = set((np.cumsum([0, *lengths]) + 1).tolist())
    assert all(piece[0] == BOS for piece in rest)
    for row in rows:
        assert row[0] == BOS
        for before, token in zip(row[:-1], row[1:], strict=True):
            if BOS not in (before, token):
                assert token == before + 1 and token not in starts


def test_calls_that_carry_the_rest_on_lose_nothing_either() -> None:
    documents, rest, seen = number_documents([7, 3, 30, 1, 1, 12, 5, 9, 2, 6]), [], []
    for document in documents:
        rows, rest = pack_documents([*rest, document], 8, BOS)
        seen += rows.ravel().tolist()
    seen += [token for piece in rest for token in piece.tolist()]
    assert sorted(token for token in seen if token != BOS) == list(range(1, 77))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 40), max_size=40), st.integers(2, 17))
def test_cropped_rows_hold_beginnings_only_and_what_is_dropped_is_counted(lengths: list[int], row_tokens: int) -> None:
    rows, rest, dropped = pack_cropped(number_documents(lengths), row_tokens, BOS)
    starts = set((np.cumsum([0, *lengths]) + 1).tolist())
    kept = [*rows.ravel().tolist(), *(token for piece in rest for token in piece.tolist())]
    real = [token for token in kept if token != BOS]
    assert len(set(real)) == len(real) == sum(lengths) - dropped
    assert sum(map(len, rest)) < row_tokens
    for row in rows:
        assert row[0] == BOS
        for before, token in zip(row[:-1], row[1:], strict=True):
            if token != BOS:
                assert token in starts if before == BOS else token == before + 1


def test_a_document_is_cropped_only_where_none_fits_and_then_the_shortest() -> None:
    rows, rest, dropped = pack_cropped(number_documents([9, 5, 6, 2, 12]), 8, BOS)
    assert rows.tolist() == [[0, 15, 16, 17, 18, 19, 20, 0], [0, 10, 11, 12, 13, 14, 0, 21], [0, 1, 2, 3, 4, 5, 6, 7],
                             [0, 23, 24, 25, 26, 27, 28, 29]]  # fmt: skip
    assert (rest, dropped) == ([], 1 + 2 + 5)


def test_documents_that_fit_are_not_cut() -> None:
    rows, rest = pack_documents(number_documents([3, 5, 3, 1, 1]), 8, BOS)
    assert rows.tolist() == [[0, 1, 2, 3, 0, 9, 10, 11], [0, 4, 5, 6, 7, 8, 0, 12]]
    assert [piece.tolist() for piece in rest] == [[0, 13]]


def test_little_is_cut_where_documents_are_shorter_than_rows() -> None:
    rng = np.random.default_rng(0)
    documents = number_documents(rng.integers(5, 100, 500).tolist())
    rows, _ = pack_documents(documents, 257, BOS)
    assert (rows == BOS).sum() < 1.02 * 500 + len(rows)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 20), max_size=40), st.booleans())
def test_whole_sequences_share_rows_without_overflow(lengths: list[int], flush: bool) -> None:
    rows, rest = pack_whole(lengths, 20, flush)
    assert sorted([index for row in rows for index in row] + rest) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= 20 for row in rows)
    assert sum(lengths[index] for index in rest) < (1 if flush else 20)


@pytest.mark.parametrize("flush", [False, True])
def test_nothing_packs_into_nothing(flush: bool) -> None:
    assert pack_whole([], 8, flush) == ([], [])
    rows, rest = pack_documents([], 8, BOS)
    assert rows.shape == (0, 8) and rest == []
