import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanochat.data.batch import IGNORED, WeightedBatch
from nanochat.data.policy import PolicyRow, build_policy_batches, compute_advantages
from nanochat.model.config import GPTConfig
from nanochat.model.gpt import GPT
from nanochat.model.optim import build_optimizer
from nanochat.runtime import World
from nanochat.training.loop import TrainState
from tests.training.loops import Recipe, train

VOCAB, PAD = 23, 0
LARGE = 1 << 20


def make_rows(seed: int, num_questions: int = 3, num_samples: int = 4) -> list[PolicyRow]:
    """Prompts of one to four tokens, answers of two to nine, of which a few in the middle are forced."""
    rng = random.Random(seed)
    rows = []
    for _ in range(num_questions):
        prompt = [rng.randrange(1, VOCAB) for _ in range(rng.randint(1, 4))]
        rewards = [float(rng.random() < 0.5) for _ in range(num_samples - 2)] + [0.0, 1.0]
        for advantage in compute_advantages(rewards):
            answer = [rng.randrange(1, VOCAB) for _ in range(rng.randint(2, 9))]
            chosen = [place == 0 or rng.random() < 0.7 for place in range(len(answer))]
            rows.append(PolicyRow(prompt + answer, [False] * len(prompt) + chosen, advantage))
    return rows


@pytest.fixture
def model() -> GPT:
    model = GPT(GPTConfig(n_layer=2, n_embd=16, n_head=2, n_kv_head=2, vocab_size=VOCAB, context=32))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def slow_loss(model: GPT, rows: list[PolicyRow]) -> torch.Tensor:
    """-sum(advantage * log p(token | what stands before)) / tokens, token by token, without a batch or a mask."""
    total, num_tokens = torch.zeros(()), 0
    for row in rows:
        for place in range(1, len(row.ids)):
            if row.chosen[place]:
                logits = model(torch.tensor([row.ids[:place]]))[0, -1]
                total = total - row.advantage * logits.log_softmax(-1)[row.ids[place]]
                num_tokens += 1
    return total / num_tokens


def gradient(model: GPT, loss: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() if p.grad is not None else torch.zeros(p.numel()) for p in model.parameters()])


def batch_loss(model: GPT, batches: list[WeightedBatch]) -> torch.Tensor:
    """What the loop computes over all its micro-batches."""
    num_targets = sum(int((batch.targets != IGNORED).sum()) for batch in batches)
    return torch.stack([model.loss(*batch) for batch in batches]).sum() / num_targets


@pytest.mark.parametrize("seed", range(4))
def test_the_loss_and_its_gradient_are_those_of_one_token_at_a_time(model: GPT, seed: int) -> None:
    rows = make_rows(seed)
    expected, found = slow_loss(model, rows), batch_loss(model, build_policy_batches(rows, LARGE, PAD))
    assert found.item() == pytest.approx(expected.item(), abs=1e-6)
    torch.testing.assert_close(gradient(model, found), gradient(model, expected), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("max_tokens", [1, 7, 20, 40])
@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_neither_micro_batches_nor_ranks_change_the_loss(model: GPT, max_tokens: int, world_size: int) -> None:
    rows = make_rows(7)
    parts = [build_policy_batches(rows, max_tokens, PAD, rank, world_size) for rank in range(world_size)]
    assert len({sum(len(batch.ids) for batch in part) for part in parts}) == 1, "every rank gets as many rows"
    found = batch_loss(model, [batch for part in parts for batch in part])
    expected = slow_loss(model, rows)
    assert found.item() == pytest.approx(expected.item(), abs=1e-6)
    torch.testing.assert_close(gradient(model, found), gradient(model, expected), rtol=1e-4, atol=1e-6)


def test_rows_without_a_signal_count_in_the_mean_and_cost_nothing(model: GPT) -> None:
    rows = make_rows(3)
    idle = [row._replace(advantage=0.0) for row in make_rows(4)]
    batches = build_policy_batches(rows + idle, LARGE, PAD)
    assert sum(len(batch.ids) for batch in batches) == len(rows)
    assert batch_loss(model, batches).item() == pytest.approx(slow_loss(model, rows + idle).item(), abs=1e-6)
    assert build_policy_batches(idle, LARGE, PAD) == []
    assert build_policy_batches([], LARGE, PAD) == []


def test_forced_tokens_and_the_prompt_have_no_gradient(model: GPT) -> None:
    ids = [3, 4, 5, 6, 7, 8]
    forced = PolicyRow(ids, [False, False, True, False, False, True], 0.5)
    loss = batch_loss(model, build_policy_batches([forced], LARGE, PAD))
    logits = model(torch.tensor([ids]))
    logits.retain_grad()
    chosen = [2, 5]
    log_probs = [logits[0, place - 1].log_softmax(-1)[ids[place]] for place in chosen]
    expected = -0.5 * torch.stack(log_probs).sum() / len(chosen)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    expected.backward()
    assert logits.grad is not None
    untouched = [place for place in range(len(ids)) if place + 1 not in chosen]
    assert not logits.grad[0, untouched].any()
    (batch,) = build_policy_batches([forced], LARGE, PAD)
    assert batch.targets.tolist() == [[IGNORED, 5, IGNORED, IGNORED, 8]]
    assert batch.weights.tolist() == [[0.0, 0.5, 0.0, 0.0, 0.5]]


@given(st.lists(st.floats(0, 1), min_size=2, max_size=16))
def test_the_advantages_of_a_question_sum_to_zero(rewards: list[float]) -> None:
    advantages = compute_advantages(rewards)
    assert sum(advantages) == pytest.approx(0, abs=1e-12)
    if min(rewards) == max(rewards):
        assert advantages == [0.0] * len(rewards)


@given(st.lists(st.integers(2, 60), min_size=1, max_size=40), st.integers(1, 200), st.integers(1, 4))
def test_every_row_is_there_once_with_little_padding(lengths: list[int], max_tokens: int, world_size: int) -> None:
    rows = [PolicyRow(list(range(1, n + 1)), [False] + [True] * (n - 1), float(i + 1)) for i, n in enumerate(lengths)]
    seen: list[tuple[int, float]] = []
    for rank in range(world_size):
        for batch in build_policy_batches(rows, max_tokens, PAD, rank, world_size):
            assert len(batch.ids) == 1 or batch.ids.numel() <= max_tokens
            targets = (batch.targets != IGNORED).sum(dim=1)
            assert targets[0] in (batch.ids.size(1), 0)  # the longest row has no padding
            for row in range(len(batch.ids)):
                if targets[row]:
                    seen.append((int(targets[row]) + 1, batch.weights[row].max().item()))
    assert sorted(seen) == sorted((n, float(i + 1)) for i, n in enumerate(lengths))


def test_the_loop_takes_the_step_of_the_weighted_loss(model: GPT) -> None:
    rows, records = make_rows(5), []
    expected = slow_loss(model, rows).item()

    def run(batches: list[WeightedBatch]) -> None:
        optimizer = build_optimizer(model, 0.02, 0.2, 0.004)
        recipe = Recipe(
            "rl", model, optimizer, lambda: batches, model.loss, 1, 0.0, 1.0, 1e9, lambda state: None, "nanochat resume"
        )
        train(recipe, TrainState(), World(), records.append)

    before = [parameter.detach().clone() for parameter in model.parameters()]
    run([])
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)), "no signal, no step"
    run(build_policy_batches(rows, 20, PAD))
    assert [record["loss"] for record in records] == [None, pytest.approx(expected, abs=1e-6)]
    assert slow_loss(model, rows).item() < expected
