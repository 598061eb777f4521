import json
from itertools import islice

import pytest
import torch

from nanochat.conversation import Conversation, Message, Part, assistant, user
from nanochat.data import finetune
from nanochat.data.finetune import Counts, FinetuneLoader, iter_once
from nanochat.errors import DataError, UsageError
from nanochat.tasks.catalog import build_mixture
from nanochat.tokenizer.chat import render
from tests.fakes import ByteTokenizer

TOKENIZER = ByteTokenizer()
END = TOKENIZER.special_ids["<|assistant_end|>"]


def talk(number: int, length: int = 3) -> Conversation:
    return Conversation((user(f"say {number}"), assistant(f"<{number}>" + "x" * length)))


TALKS = [talk(index, index * 5 % 23) for index in range(90)]


def build(conversations=TALKS, rows: int = 2, context: int = 96, **options) -> FinetuneLoader:
    return FinetuneLoader(conversations, TOKENIZER, rows, context, **options)


def learnt(batch) -> str:
    """What the assistant says in a batch, with its delimiters."""
    return TOKENIZER.decode([token for token in batch.targets.flatten().tolist() if token >= 0])


def test_exactly_what_the_assistant_says_is_learnt() -> None:
    conversation = Conversation((user("hi"), assistant("a", ("python", "1+1"), ("python_output", "2"), "b")))
    with build([conversation], rows=1, context=33) as loader:  # 17 tokens, twice
        batch = next(loader)
    once = "a<|python_start|>1+1<|python_end|>b<|assistant_end|>"
    assert learnt(batch) == once * 2
    assert TOKENIZER.decode(batch.ids[0].tolist()).startswith("<|bos|><|user_start|>hi<|user_end|><|assistant_start|>a")


def test_an_answer_that_is_not_to_be_learnt_is_read_and_not_learnt() -> None:
    first = Message(
        "assistant", (Part("text", "no"), Part("python", "1+1"), Part("python_output", "2")), is_learnt=False
    )
    conversation = Conversation((user("hi"), first, user("and?"), assistant("yes")))
    (batch,) = iter_once([conversation], TOKENIZER, 1, 96)
    assert learnt(batch) == "yes<|assistant_end|>"
    assert "no<|python_start|>1+1<|python_end|>" in TOKENIZER.decode(batch.ids[0].tolist())


def test_targets_are_the_next_tokens_and_padding_is_bos() -> None:
    with build(context=64) as loader:
        for batch in islice(loader, 20):
            assert batch.ids.shape == batch.targets.shape == (2, 64)
            assert batch.ids.dtype == batch.targets.dtype == torch.int64
            kept = batch.targets[:, :-1] != -1
            assert torch.equal(batch.targets[:, :-1][kept], batch.ids[:, 1:][kept])
            for ids in batch.ids.tolist():
                assert ids[0] == TOKENIZER.bos_id


def test_an_epoch_holds_every_conversation_whole_and_once() -> None:
    said = ""
    with build() as loader:
        for batch in loader:
            said += learnt(batch)
            if loader.epoch:
                break
        said += "".join(learnt(batch) for batch in islice(loader, 2))  # what the epoch's end carried on
        assert loader.counts.total >= 90 and loader.counts.dropped == loader.counts.truncated == 0
    for index in range(90):
        whole = f"<{index}>" + "x" * (index * 5 % 23) + "<|assistant_end|>"
        assert whole in said
    with build(context=4096) as loader:  # rows longer than an epoch
        said = learnt(next(loader))
    assert all(f"<{index}>" in said for index in range(90))


@pytest.mark.parametrize("stop", [1, 5, 33])
def test_resume_continues_bit_for_bit(stop: int) -> None:
    options = {"rank": 1, "world_size": 2, "seed": 3}
    with build(**options) as loader:
        whole = [torch.stack(tuple(batch)) for batch in islice(loader, stop + 30)]
        counts = loader.counts
    with build(**options) as loader:
        for _ in islice(loader, stop):
            pass
        cursor = json.loads(json.dumps(loader.cursor()))
    with build(**options, cursor=cursor) as loader:
        assert not loader.changed and loader.cursor() == cursor
        rest = [torch.stack(tuple(batch)) for batch in islice(loader, 30)]
        assert loader.counts == counts
    assert all(torch.equal(a, b) for a, b in zip(whole[stop:], rest, strict=True))


def test_the_seed_decides_the_order_and_epochs_differ() -> None:
    def order(seed: int) -> str:
        with build(seed=seed) as loader:
            return "".join(learnt(batch) for batch in islice(loader, 60))

    assert order(1) == order(1) != order(2)
    once = order(1)
    first = once.find("<7>")
    assert once[first : first + 40] not in once[first + 40 :]


def read_steps(world_sizes: list[int]) -> list[str]:
    """What all ranks learn in each step of 12 rows; before every step the world changes and resumes."""
    steps, cursor = [], None
    for world_size in world_sizes:
        said, cursors = [], []
        for rank in range(world_size):
            with build(rows=12 // world_size, rank=rank, world_size=world_size, cursor=cursor) as loader:
                assert not loader.changed
                batch = next(loader)
                cursors.append(json.loads(json.dumps(loader.cursor())))
            said += [TOKENIZER.decode([t for t in row if t >= 0]) for row in batch.targets.tolist()]
        assert all(found == cursors[0] for found in cursors)
        steps.append("".join(sorted(said)))
        cursor = cursors[0]
    return steps


def test_a_step_has_the_same_rows_on_any_number_of_ranks_and_across_changes() -> None:
    alone = read_steps([1] * 8)
    assert read_steps([3] * 8) == alone
    assert read_steps([1, 2, 4, 1, 6, 12, 3, 1]) == alone


def test_a_run_goes_on_exactly_with_other_rows_a_batch() -> None:
    with build(rows=6) as loader:
        whole = torch.cat([batch.ids for batch in islice(loader, 4)])
    with build(rows=3) as loader:
        begun = torch.cat([batch.ids for batch in islice(loader, 4)])
        cursor = json.loads(json.dumps(loader.cursor()))
    with build(rows=4, cursor=cursor) as loader:
        assert torch.equal(torch.cat([begun, *(batch.ids for batch in islice(loader, 3))]), whole)


def test_long_conversations_are_truncated_and_counted() -> None:
    with build([talk(1, 500)], context=40, overlong="truncate") as loader:
        batch = next(loader)
        assert learnt(batch).startswith("<1>xxx") and END not in batch.targets
        assert loader.counts.truncated == loader.counts.total > 0


def test_long_conversations_are_dropped_and_counted() -> None:
    with build([talk(1, 500), talk(2)], context=40, overlong="drop") as loader:
        for batch in islice(loader, 10):
            assert "<1>" not in learnt(batch)
        assert loader.counts.dropped * 2 == loader.counts.total


def test_long_conversations_are_an_error_on_request() -> None:
    with build([talk(1, 500)], context=40, overlong="error") as loader:
        with pytest.raises(DataError, match="more than the context of 40"):
            next(loader)
    with build([talk(1, 500)], context=40, overlong="drop") as loader:
        with pytest.raises(DataError, match="all 1 conversations"):
            next(loader)


def test_a_row_without_anything_to_learn_is_legal() -> None:
    long = Conversation((user("x" * 500), assistant("y")))
    with build([long], context=40) as loader:
        batch = next(loader)
    assert (batch.targets == -1).all()


def test_a_conversation_of_exactly_a_row_is_whole() -> None:
    conversation = talk(1)
    from nanochat.tokenizer.chat import render

    ids, _ = render(TOKENIZER, conversation)  # pyright: ignore
    with build([conversation], context=len(ids) - 1) as loader:
        assert learnt(next(loader)) == "<1>xxx<|assistant_end|>" * 2
        assert loader.counts == Counts(2)


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_plan_is_what_an_epoch_takes(world_size: int) -> None:
    conversations = TALKS * 12
    for rank in range(world_size):
        with build(conversations, rank=rank, world_size=world_size) as loader:
            planned = loader.num_batches_per_epoch
            taken = sum(1 for _ in iter(lambda: next(loader) and loader.epoch, 1))
        assert taken == pytest.approx(planned, rel=0.03)


def test_nothing_to_learn_from_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="no conversation"):
        build([])


def test_other_conversations_resume_at_about_the_same_place_and_say_so() -> None:
    with build() as loader:
        next(loader)
        cursor = loader.cursor()
    with build(TALKS * 2, cursor=cursor) as loader:
        assert loader.changed and loader.epoch == cursor["epoch"]
        next(loader)


@pytest.mark.parametrize("rows", [1, 4, 1_000])
def test_validation_is_one_pass_with_every_conversation_once_in_its_order(
    monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr(finetune, "POOL_CONVERSATIONS", 32)
    monkeypatch.setattr(finetune, "PLANNED_CONVERSATIONS", 10)  # nothing is sampled
    batches = list(iter_once(TALKS, TOKENIZER, rows, 64))  # pyright: ignore
    said = [learnt(batch) for batch in batches]
    whole = [f"<{index}>" + "x" * (index * 5 % 23) + "<|assistant_end|>" for index in range(90)]
    assert sorted("".join(said).split("<|assistant_end|>")[:-1]) == sorted(
        t.removesuffix("<|assistant_end|>") for t in whole
    )
    assert [len(batch.ids) for batch in batches[:-1]] == [rows] * (len(batches) - 1)
    assert said[0].startswith(whole[0])
    alone = list(iter_once(TALKS, TOKENIZER, 1, 64))
    assert torch.equal(torch.cat([batch.ids for batch in batches]), torch.cat([batch.ids for batch in alone]))
    assert torch.equal(torch.cat([batch.targets for batch in batches]), torch.cat([batch.targets for batch in alone]))


def test_validation_of_one_long_conversation_is_one_row() -> None:
    (batch,) = iter_once([talk(1, 500)], TOKENIZER, 4, 40)
    assert batch.ids.shape == (1, 40) and list(iter_once([], TOKENIZER, 4, 40)) == []


def test_other_conversations_of_the_same_number_are_not_taken_for_the_same() -> None:
    with build() as loader:
        next(loader)
        cursor = json.loads(json.dumps(loader.cursor()))
    edited = [*TALKS[:-1], talk(89, 4)]
    with build(edited, cursor=cursor) as loader:
        assert loader.changed == "the conversations are others"
    with build(cursor={key: value for key, value in cursor.items() if key != "data_hash"}) as loader:
        assert not loader.changed  # saved by an older version: the numbers decide
    with build(cursor=cursor, overlong="drop") as loader:
        assert loader.changed == "overlong was truncate, now drop"


@pytest.mark.parametrize("cursor", [{}, {"version": 1}, {"version": 2, "epoch": "x"}])
def test_a_broken_cursor_is_said(cursor: dict) -> None:
    with pytest.raises(DataError, match="cursor"):
        build(cursor=cursor)


def test_a_mixture_of_tasks_is_a_list_of_conversations() -> None:
    with build(build_mixture(["letters:50", "arithmetic:50", "identity"]), context=256) as loader:
        assert "<|assistant_end|>" in learnt(next(loader))


@pytest.mark.parametrize("overlong", ["drop", "truncate"])
def test_the_size_of_an_epoch_counts_tokens_and_those_too_long(overlong) -> None:
    long = [talk(100, 80), talk(101, 200)]
    with build(TALKS + long, context=64, overlong=overlong) as loader:
        size = loader.measure_epoch()
    lengths = [len(render(TOKENIZER, conversation)[0]) for conversation in TALKS]
    kept = 2 * 65 if overlong == "truncate" else 0
    assert size.conversations == 92 and size.too_long == 2 and not size.is_estimate
    assert size.tokens == sum(lengths) + kept and size.rows == loader.num_rows_per_epoch >= size.tokens / 65


def test_the_size_of_a_large_epoch_is_estimated_from_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    with build(TALKS * 20, context=64) as loader:
        exact = loader.measure_epoch()
        monkeypatch.setattr(finetune, "PLANNED_CONVERSATIONS", 300)
        size = loader.measure_epoch()
    assert size.is_estimate and not exact.is_estimate and size.conversations == 1_800
    assert abs(size.tokens / exact.tokens - 1) < 0.1 and abs(size.rows / exact.rows - 1) < 0.1
