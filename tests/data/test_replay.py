import json
from contextlib import closing
from itertools import islice
from pathlib import Path

import pytest
import torch

from nanochat.conversation import Conversation, assistant, user
from nanochat.data.finetune import FinetuneLoader
from nanochat.data.pretrain import PretrainLoader
from nanochat.data.replay import ReplayLoader, is_text_row, split_cursor
from nanochat.data.shards import write_shards
from nanochat.errors import DataError
from tests.fakes import ByteTokenizer

CONTEXT = 64
TALKS = [Conversation((user(f"say {index}"), assistant("x" * (index % 23 + 1)))) for index in range(50)]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    write_shards(tmp_path, [f"<{index}>" + "abc"[index % 3] * (index * 7 % 60) for index in range(120)], "train")
    return tmp_path


def build(dataset: Path, cursor: dict | None = None, share: float = 0.3, rows: int = 4, **where) -> ReplayLoader:
    talks, text, row = split_cursor(cursor)
    return ReplayLoader(
        FinetuneLoader(TALKS, ByteTokenizer(), 1, CONTEXT, cursor=talks),
        PretrainLoader(dataset, "train", ByteTokenizer(), 1, CONTEXT, cursor=text),
        *(share, rows),
        row=row,
        **where,
    )


def take(loader: ReplayLoader, num_batches: int) -> torch.Tensor:
    """Batches stacked: (N, 2, rows, T)."""
    return torch.stack([torch.stack(tuple(batch)) for batch in islice(loader, num_batches)])


def is_text(targets: torch.Tensor) -> torch.Tensor:
    """Rows (N, T) all of whose tokens are learnt: those of text."""
    return (targets != -1).all(dim=-1)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.3, 0.9])
def test_the_share_of_the_rows_is_text_and_the_rest_are_the_conversations_in_their_order(
    dataset: Path, share: float
) -> None:
    with closing(build(dataset, share=share)) as loader:
        rows = take(loader, 25).transpose(1, 2).flatten(0, 1)  # (100, 2, T)
    text = is_text(rows[:, 1])
    assert text.tolist() == [is_text_row(number, share) for number in range(100)]
    assert abs(int(text.sum()) - 100 * share) <= 1
    with FinetuneLoader(TALKS, ByteTokenizer(), 1, CONTEXT) as alone:
        expected = torch.cat([torch.stack(tuple(batch), dim=1) for batch in islice(alone, int((~text).sum()))])
    assert torch.equal(rows[~text], expected)


def test_two_ranks_share_the_rows_of_one(dataset: Path) -> None:
    with closing(build(dataset, rows=4)) as one:
        whole = take(one, 6)
    with closing(build(dataset, rows=2, rank=0, world_size=2)) as first:
        even = take(first, 6)
        cursor = first.cursor()
    with closing(build(dataset, rows=2, rank=1, world_size=2)) as second:
        odd = take(second, 6)
        assert second.cursor() == cursor
    assert torch.equal(whole[:, :, 0::2], even) and torch.equal(whole[:, :, 1::2], odd)


@pytest.mark.parametrize("stop", [1, 7])
def test_resume_continues_bit_for_bit_with_another_number_of_ranks(dataset: Path, stop: int) -> None:
    with closing(build(dataset)) as loader:
        whole, counts = take(loader, stop + 8), loader.counts
    with closing(build(dataset)) as loader:
        take(loader, stop)
        cursor = json.loads(json.dumps(loader.cursor()))
    for rank in range(2):
        with closing(build(dataset, cursor, rows=2, rank=rank, world_size=2)) as loader:
            assert torch.equal(take(loader, 8), whole[stop:, :, rank::2])
            assert loader.counts == counts and not loader.changed


def test_a_cursor_of_another_kind_is_refused() -> None:
    with pytest.raises(DataError, match="cannot be read"):
        split_cursor({"version": 2, "row": 3})


def test_other_text_or_conversations_are_named(dataset: Path, tmp_path: Path) -> None:
    with closing(build(dataset)) as loader:
        next(loader)
        cursor = json.loads(json.dumps(loader.cursor()))
    with closing(build(dataset, cursor)) as loader:
        assert loader.changed == ""
    cursor["text"]["data_hash"] = cursor["conversations"]["data_hash"] = "another"
    with closing(build(dataset, cursor)) as loader:
        assert loader.changed == "the conversations are others; the training text is another one"
