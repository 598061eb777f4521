import json
import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from nanochat.conversation import Conversation, Part, assistant, user
from nanochat.evals.chat import (
    Score,
    average_centred,
    draw_seed,
    estimate_mean_error,
    evaluate_chat,
    hash_examples,
    read_score,
    show_parts,
    split_parts,
    spread_indices,
    without_answer,
)
from nanochat.evals.samples import TEXT_PROMPTS, sample_answers, sample_texts
from nanochat.tasks.task import Task

SPECIAL = (
    "<|bos|>",
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    "<|assistant_end|>",
    "<|python_start|>",
    "<|python_end|>",
    "<|output_start|>",
    "<|output_end|>",
)
VOCAB = 128 + len(SPECIAL)


class AsciiTokenizer:
    """One token a character, then the nine special tokens."""

    special_ids = {name: 128 + index for index, name in enumerate(SPECIAL)}
    bos_id = 128
    vocab_size = VOCAB

    def encode(self, text: str) -> list[int]:
        return list(text.encode("ascii"))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode("ascii", "replace")


TOKENIZER = AsciiTokenizer()
START, END = TOKENIZER.special_ids["<|assistant_start|>"], TOKENIZER.special_ids["<|assistant_end|>"]
CALL, CALL_END = TOKENIZER.special_ids["<|python_start|>"], TOKENIZER.special_ids["<|python_end|>"]
OUTPUT_END = TOKENIZER.special_ids["<|output_end|>"]


class Follower(nn.Module):
    """A model that always says `after[token]` next; `letter` makes a prompt's last token prefer letters in order."""

    def __init__(self, after: dict[int, int], context: int = 64) -> None:
        super().__init__()
        self.dummy = nn.Parameter(torch.zeros(1))
        self.compute_dtype = torch.float32
        self.config = SimpleNamespace(
            n_layer=1, n_head=1, n_kv_head=1, n_embd=VOCAB, head_dim=2, context=context, vocab_size=VOCAB
        )
        self.table = torch.zeros(VOCAB, VOCAB)
        for token, next_token in after.items():
            self.table[token, next_token] = 1.0
        self.head_weight = torch.eye(VOCAB)

    def hidden(self, ids: Tensor, cache: object = None) -> Tensor:
        return self.table[ids]

    def forward(self, ids: Tensor, cache: object = None) -> Tensor:
        return self.hidden(ids, cache)


def chain(*tokens: int) -> dict[int, int]:
    return dict(zip(tokens, tokens[1:], strict=False))


CALCULATES_FIVE = chain(START, CALL, *b"2+3", CALL_END) | chain(OUTPUT_END, *b"5", END)


class SumTask(Task):
    """Example i asks for i + 1, so a model that always says 5 is right once in ten."""

    name = "sums"
    max_new_tokens = 20

    def num_examples(self) -> int:
        return 10

    def example(self, index: int) -> Conversation:
        return Conversation((user(f"{index}+1?"), assistant(str(index + 1))))

    def evaluate(self, conversation: Conversation, completion: str) -> bool | None:
        return completion.strip() == conversation.messages[-1].text


class LetterTask(Task):
    """The right letter of example i is the i-th of three."""

    name = "choices"
    eval_type = "categorical"

    def num_examples(self) -> int:
        return 6

    def example(self, index: int) -> Conversation:
        return Conversation((user("?" * (index + 1)), assistant("ABC"[index % 3])))

    def letters(self, index: int) -> tuple[str, ...]:
        return ("A", "B", "C")

    def evaluate(self, conversation: Conversation, completion: str) -> bool | None:
        return completion == conversation.messages[-1].text


class ChatterTask(SumTask):
    """Graded on even examples only."""

    def evaluate(self, conversation: Conversation, completion: str) -> bool | None:
        return None if int(conversation.messages[-1].text) % 2 else False


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_answers_are_sampled_with_tools_and_graded(batch_size: int) -> None:
    score = evaluate_chat(SumTask(), Follower(CALCULATES_FIVE), TOKENIZER, batch_size=batch_size)
    assert (score.correct, score.total, score.too_long, score.accuracy) == (1, 10, 0, 0.1)
    assert score.with_tool == 10
    assert score.stderr == pytest.approx(math.sqrt(0.1 * 0.9 / 10))
    assert score.samples[4].question == "4+1?" and score.samples[4].answer == "[2+3 -> 5]5"
    assert [sample.correct for sample in score.samples] == [index == 4 for index in range(8)]


def test_the_score_of_a_model_never_changes() -> None:
    scores = [evaluate_chat(SumTask(), Follower(CALCULATES_FIVE), TOKENIZER, num_samples=3) for _ in range(2)]
    assert scores[0] == scores[1] and len(scores[0].samples) == 3


def test_an_answer_without_end_is_cut_and_graded() -> None:
    score = evaluate_chat(SumTask(), Follower(chain(START, *b"77")), TOKENIZER, max_new_tokens=4)
    assert score.correct == score.with_tool == 0 and score.samples[0].answer == "7777"


def test_prompts_longer_than_the_context_count_as_wrong_and_are_said() -> None:
    score = evaluate_chat(SumTask(), Follower(CALCULATES_FIVE, context=4), TOKENIZER)
    assert (score.correct, score.total, score.too_long) == (0, 10, 10)
    assert "too long for a context of 4" in score.samples[0].answer
    score = evaluate_chat(LetterTask(), Follower({}, context=8), TOKENIZER)
    assert score.total == 6 and 0 < score.too_long < 6


def test_a_small_context_cuts_answers_without_an_error() -> None:
    score = evaluate_chat(SumTask(), Follower(CALCULATES_FIVE, context=10), TOKENIZER)
    assert (score.correct, score.total, score.too_long) == (0, 10, 0)


@pytest.mark.parametrize("batch_size", [1, 4, 6])
def test_the_most_likely_letter_is_the_answer(batch_size: int) -> None:
    model = Follower(chain(START, ord("B")))
    model.table[START, ord("Z")] = 9.0  # not a choice, however likely
    score = evaluate_chat(LetterTask(), model, TOKENIZER, batch_size=batch_size)
    assert (score.correct, score.total, score.baseline) == (2, 6, pytest.approx(1 / 3))
    assert score.centred == pytest.approx(0.0)
    assert {sample.answer for sample in score.samples} == {"B"}


def test_ungraded_examples_are_counted_apart() -> None:
    score = evaluate_chat(ChatterTask(), Follower(CALCULATES_FIVE), TOKENIZER)
    assert (score.total, score.ungraded, score.accuracy) == (5, 5, 0.0)
    assert Score("chatter", 0, 0).accuracy is None and Score("chatter", 0, 0).stderr is None


def test_examples_are_spread_over_the_task_and_progress_is_told() -> None:
    seen: list[tuple[int, int]] = []
    model = Follower(CALCULATES_FIVE)
    score = evaluate_chat(SumTask(), model, TOKENIZER, max_examples=5, progress=lambda *now: seen.append(now))
    assert [sample.question for sample in score.samples] == ["0+1?", "2+1?", "4+1?", "6+1?", "8+1?"]
    assert seen == [(done, 5) for done in range(1, 6)]
    assert len(set(spread_indices(1000, 400))) == 400


class FakeWorld:
    device = torch.device("cpu")

    def __init__(self, rank: int, sums: list[Tensor]) -> None:
        self.rank, self.world_size, self.sums = rank, 3, sums

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        self.sums.append(tensor.clone())
        return tensor


@pytest.mark.parametrize("task", [SumTask(), LetterTask()])
def test_ranks_share_the_examples_and_their_sum_is_the_score_of_one_process(task: Task) -> None:
    model = Follower(CALCULATES_FIVE)
    alone, sums = evaluate_chat(task, model, TOKENIZER), []
    for rank in range(3):
        evaluate_chat(task, model, TOKENIZER, world=FakeWorld(rank, sums))  # type: ignore[arg-type]
    correct, total, too_long, with_tool, baseline, _ = torch.stack(sums).sum(0).tolist()
    assert (correct, total, too_long, with_tool) == (alone.correct, alone.total, alone.too_long, alone.with_tool)
    assert baseline / total == pytest.approx(alone.baseline)


def test_a_score_is_plain_json_with_its_derived_numbers() -> None:
    score = evaluate_chat(SumTask(), Follower(CALCULATES_FIVE), TOKENIZER, num_samples=1).to_dict()
    sample = {"question": "0+1?", "answer": "[2+3 -> 5]5", "correct": False}
    assert score == {
        "name": "sums",
        "correct": 1,
        "total": 10,
        "too_long": 0,
        "ungraded": 0,
        "with_tool": 10,
        "baseline": 0.0,
        "answers_each": 1,
        "accuracy": 0.1,
        "stderr": pytest.approx(math.sqrt(0.009)),
        "samples": [sample],
    }


def test_chat_core_is_the_mean_of_centred_scores() -> None:
    scores = [Score("a", 5, 10), Score("b", 5, 8, baseline=0.25), Score("talk", 0, 0)]
    assert average_centred(scores) == pytest.approx((0.5 + 0.5) / 2)
    assert average_centred([]) is None


def test_the_error_of_the_mean_is_that_of_independent_tasks() -> None:
    scores = [Score("a", 5, 10), Score("b", 5, 8, baseline=0.25), Score("talk", 0, 0)]
    errors = [(0.25 / 10) ** 0.5, (5 / 8 * 3 / 8 / 8) ** 0.5 / 0.75]
    assert estimate_mean_error(scores) == pytest.approx(math.hypot(*errors) / 2)
    assert estimate_mean_error([]) is None


class Doubter(Follower):
    """Says 1 or 2 with equal chances, then ends: right half the time where the answer is 1 or 2."""

    def __init__(self) -> None:
        super().__init__(chain(ord("1"), END) | chain(ord("2"), END))
        self.table *= 50
        self.table[START, ord("1")] = self.table[START, ord("2")] = 50.0


@pytest.mark.parametrize("batch_size", [3, 64])
def test_several_answers_give_pass_at_k(batch_size: int) -> None:
    score = evaluate_chat(SumTask(), Doubter(), TOKENIZER, answers_each=8, temperature=1.0, batch_size=batch_size)
    assert (score.total, score.answers_each) == (10, 8)
    assert 4 <= score.correct <= 12  # two of ten questions have a chance of a half
    passed = dict(score.pass_at)
    assert list(passed) == [1, 2, 4, 8] and passed[1] == pytest.approx(score.accuracy) and passed[8] == 0.2
    assert passed[1] < passed[2] < passed[4] <= passed[8]
    counts = [score.correct / 2 / 8] * 2 + [0] * 8  # the examples differ more than their answers do
    mean = sum(counts) / 10
    assert score.stderr == pytest.approx(math.sqrt((sum(p * p for p in counts) / 10 - mean**2) / 10), rel=0.15)
    assert score.to_dict()["pass_at"] == {str(k): value for k, value in passed.items()}
    assert read_score(json.loads(json.dumps(score.to_dict() | {"stage": "sft"}))) == score
    same = evaluate_chat(SumTask(), Doubter(), TOKENIZER, answers_each=8, temperature=1.0)
    other = evaluate_chat(SumTask(), Doubter(), TOKENIZER, answers_each=8, temperature=1.0, seed=7)
    assert same == score and other != score


def test_several_answers_of_several_ranks_are_those_of_one_process() -> None:
    alone, sums = evaluate_chat(SumTask(), Doubter(), TOKENIZER, answers_each=4, temperature=1.0), []
    for rank in range(3):
        world = FakeWorld(rank, sums)
        evaluate_chat(SumTask(), Doubter(), TOKENIZER, answers_each=4, temperature=1.0, world=world)  # type: ignore[arg-type]
    correct, total, *_, one, two, four = torch.stack(sums).sum(0).tolist()
    assert (correct, total) == (alone.correct, alone.total)
    assert [one / 10, two / 10, four / 10] == pytest.approx([value for _, value in alone.pass_at])


def test_a_question_with_an_answer_that_could_not_be_graded_is_ungraded() -> None:
    class Shaky(SumTask):
        def evaluate_all(
            self, items: Sequence[tuple[Conversation, str]], progress: Callable[[int, int], None] | None = None
        ) -> list[bool | None]:
            return [None if number == 5 else True for number in range(len(items))]

    score = evaluate_chat(Shaky(), Doubter(), TOKENIZER, answers_each=4, temperature=1.0)
    assert (score.total, score.ungraded, score.correct, score.accuracy) == (9, 1, 36, 1.0)
    assert dict(score.pass_at) == {1: 1.0, 2: 1.0, 4: 1.0}


def test_every_answer_has_a_seed_of_its_own() -> None:
    seeds = [draw_seed(42, task, index, number) for task in "ab" for index in range(9) for number in range(9)]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2**63 for seed in seeds)


def test_the_hash_of_a_task_changes_with_what_is_looked_at() -> None:
    assert hash_examples(SumTask(), None) == hash_examples(SumTask(), 10) != hash_examples(SumTask(), 9)
    assert hash_examples(SumTask(), None) != hash_examples(LetterTask(), None)


def test_answers_split_into_text_calls_and_output() -> None:
    ids = [*b"Hm ", CALL, *b"1+1", CALL_END, TOKENIZER.special_ids["<|output_start|>"], *b"2", OUTPUT_END, *b" so 2"]
    parts = (Part("text", "Hm "), Part("python", "1+1"), Part("python_output", "2"), Part("text", " so 2"))
    assert split_parts(TOKENIZER, ids) == parts
    assert show_parts(parts) == "Hm [1+1 -> 2] so 2"
    assert split_parts(TOKENIZER, [CALL, *b"1+"]) == (Part("python", "1+"),)
    assert show_parts((Part("python_output", "2"),)) == "[-> 2]"


def test_an_example_without_an_answer_is_refused() -> None:
    with pytest.raises(ValueError, match="right answer"):
        without_answer(Conversation((user("hi"),)))


def test_samples_continue_documents_and_answer_questions() -> None:
    texts = sample_texts(Follower(chain(*b"e!"), context=256), TOKENIZER, max_new_tokens=3)
    assert [sample.prompt for sample in texts] == list(TEXT_PROMPTS)
    assert texts[0].text.startswith("!")
    answers = sample_answers(Follower(CALCULATES_FIVE, context=256), TOKENIZER, ["What is 2+3?"])
    assert answers[0].to_dict() == {"prompt": "What is 2+3?", "text": "[2+3 -> 5]5"}


def test_samples_fit_any_context() -> None:
    model = Follower(CALCULATES_FIVE, context=8)
    assert len(sample_texts(model, TOKENIZER)) == len(TEXT_PROMPTS)
    assert sample_answers(model, TOKENIZER) == ()
