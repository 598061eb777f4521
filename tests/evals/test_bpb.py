import math
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.evals.bpb import measure_bits

VOCAB, SPECIAL = 11, 10
TOKEN_BYTES = torch.tensor([1, 2, 3, 1, 1, 4, 2, 1, 1, 7, 0])


@dataclass
class Rows:
    ids: Tensor
    targets: Tensor


class BigramModel:
    """Scores a token from the one before it, so every way of batching must give the same sum."""

    def __init__(self) -> None:
        self.table = torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(0))
        self.num_rows = 0

    def token_nll(self, ids: Tensor, targets: Tensor) -> Tensor:
        self.num_rows += len(ids)
        logits = self.table[ids]  # (B, T, V)
        nll = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="none")
        return nll.view(targets.shape)


def make_rows(num_rows: int = 12, length: int = 7) -> tuple[Tensor, Tensor]:
    stream = torch.randint(VOCAB, (num_rows, length + 1), generator=torch.Generator().manual_seed(1))
    return stream[:, :-1], stream[:, 1:]


def batched(ids: Tensor, targets: Tensor, size: int) -> list[Rows]:
    return [Rows(ids[start : start + size], targets[start : start + size]) for start in range(0, len(ids), size)]


def oracle(ids: Tensor, targets: Tensor, num_tokens: int) -> float:
    model, bits, num_bytes = BigramModel(), 0.0, 0
    pairs = list(zip(ids.flatten().tolist(), targets.flatten().tolist(), strict=True))[:num_tokens]
    for before, target in pairs:
        if target >= 0 and target != SPECIAL:
            bits -= torch.log_softmax(model.table[before], 0)[target].item() / math.log(2)
            num_bytes += int(TOKEN_BYTES[target])
    return bits / num_bytes


@pytest.mark.parametrize("num_tokens", [1, 8, 30, 84, 1000])
@pytest.mark.parametrize("size", [1, 2, 5, 12])
def test_bits_per_byte_equals_a_loop_over_tokens_whatever_the_batch_size(num_tokens: int, size: int) -> None:
    ids, targets = make_rows()
    score = measure_bits(BigramModel(), batched(ids, targets, size), TOKEN_BYTES, num_tokens).bpb
    assert score == pytest.approx(oracle(ids, targets, num_tokens), rel=1e-5)


def test_ignored_and_special_targets_count_neither_bytes_nor_loss() -> None:
    ids, targets = make_rows()
    targets = targets.clone()
    targets[::2, :3] = -1
    targets[1::2, 2:4] = SPECIAL
    score = measure_bits(BigramModel(), batched(ids, targets, 5), TOKEN_BYTES, 1000).bpb
    assert score == pytest.approx(oracle(ids, targets, 1000), rel=1e-5)


def test_ignored_places_are_not_said_to_be_validation_tokens() -> None:
    ids, targets = make_rows()
    targets = torch.where(torch.arange(targets.numel()).view(targets.shape) < 22, targets, -1)
    assert measure_bits(BigramModel(), batched(ids, targets, 5), TOKEN_BYTES, 1000).num_tokens == 22


def test_a_model_without_knowledge_needs_log2_vocabulary_bits_per_one_byte_token() -> None:
    model = BigramModel()
    model.table = torch.zeros(VOCAB, VOCAB)
    ids, targets = torch.zeros(2, 4, dtype=torch.int64), torch.zeros(2, 4, dtype=torch.int64)
    bits = measure_bits(model, [Rows(ids, targets)], TOKEN_BYTES, 8)
    assert bits.num_bytes == 8 and bits.bpb == pytest.approx(math.log2(VOCAB))


def test_batches_past_the_last_token_are_not_asked_for() -> None:
    ids, targets = make_rows()
    model = BigramModel()
    bits = measure_bits(model, batched(ids, targets, 2), TOKEN_BYTES, 14)
    assert model.num_rows == 2 and bits.num_tokens == 14


def test_targets_of_the_caller_are_left_alone() -> None:
    ids, targets = make_rows()
    before = targets.clone()
    measure_bits(BigramModel(), [Rows(ids, targets)], TOKEN_BYTES, 10)
    assert torch.equal(before, targets)


def test_text_without_bytes_is_an_error_not_a_number() -> None:
    targets = torch.full((1, 4), SPECIAL)
    with pytest.raises(ValueError, match="no validation text"):
        _ = measure_bits(BigramModel(), [Rows(targets, targets)], TOKEN_BYTES, 4).bpb


@dataclass
class FakeWorld:
    rank: int
    world_size: int
    parts: list[Tensor]

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        self.parts.append(tensor.clone())
        return tensor


@pytest.mark.parametrize("size", [1, 3, 4])
def test_ranks_share_the_rows_and_their_sum_is_the_score_of_one_process(size: int) -> None:
    ids, targets = make_rows()
    alone = measure_bits(BigramModel(), batched(ids, targets, 4), TOKEN_BYTES, 60)
    parts: list[Tensor] = []
    for rank in range(3):
        measure_bits(BigramModel(), batched(ids, targets, size), TOKEN_BYTES, 60, FakeWorld(rank, 3, parts))  # type: ignore[arg-type]
    nats, num_bytes = torch.stack(parts).sum(0).tolist()
    assert num_bytes == alone.num_bytes
    assert nats / math.log(2) == pytest.approx(alone.bits, rel=1e-6)
