"""CORE equals a slow, obvious reference that looks at one option a pass."""

from pathlib import Path

import pytest
import torch

from nanochat.data.core_bundle import CORE_TASKS, load_bundle, load_items
from nanochat.errors import NumericalError
from nanochat.evals.core import CoreScore, TaskScore, evaluate_core_task, plan_batches, score_tokens
from nanochat.evals.core_prompt import build_question, draw_shots, render_prompt
from nanochat.model.config import GPTConfig
from nanochat.model.gpt import GPT
from tests import oracle_core
from tests.core_bundle import KINDS, write_bundle
from tests.fakes import ByteTokenizer

TOKENIZER = ByteTokenizer()


def make_model(context: int = 256, n_kv_head: int = 1) -> GPT:
    model = GPT(GPTConfig(n_layer=2, n_embd=32, n_head=2, n_kv_head=n_kv_head, context=context, vocab_size=265))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)
    return model


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("core"))


@pytest.mark.parametrize("context", [8, 24, 64, 400])
@pytest.mark.parametrize("label", list(KINDS))
@pytest.mark.parametrize("n_kv_head", [1, 2])
def test_predictions_equal_the_one_example_a_pass_reference(
    bundle: Path, label: str, context: int, n_kv_head: int
) -> None:
    model = make_model(context, n_kv_head)
    task = next(task for task in load_bundle(bundle).tasks if task.label == label)
    raw = next(raw for raw in oracle_core.read_tasks(bundle) if raw["label"] == label)
    items, _ = load_items(task)
    expected = oracle_core.predict_task(bundle, raw, list(range(len(items))), model, TOKENIZER)
    for batch_tokens in (1, 700, None):
        score, predictions = evaluate_core_task(task, items, model, TOKENIZER, batch_tokens=batch_tokens)
        for prediction in predictions:
            wanted = expected[prediction.index]
            if task.kind == "language_modeling" and wanted is not None:
                wanted = 0 if wanted else -1
            assert prediction.chosen == wanted, prediction
        assert score.total == 12 and score.correct == sum(prediction.correct for prediction in predictions)
        assert score.too_long == sum(value is None for value in expected.values())
    if context == 400:
        assert score.truncated == score.too_long == 0
    if context == 8 and label in ("copa", "arc_easy", "winograd", "winogrande"):
        assert score.too_long > 0
    if context == 64 and task.num_fewshot:
        assert score.truncated == 12


def test_language_modelling_is_right_where_every_token_is_the_most_likely(tmp_path: Path) -> None:
    write_bundle(tmp_path, ["lambada_openai"])
    (tmp_path / "eval_data/all/lambada_openai.jsonl").write_text(
        '{"context": "a", "continuation": "b"}\n{"context": "ab", "continuation": "ccc"}\n'
        '{"context": "ab", "continuation": "ccd"}\n'
    )
    model = make_model()
    for block in model.blocks:  # so that the next token hangs on the last one alone
        block.attention.out.weight.data.zero_()
        block.mlp.down.weight.data.zero_()
    task = load_bundle(tmp_path).tasks[0]
    items, _ = load_items(task)
    follows = {ord("a"): ord(" "), ord("b"): ord(" "), ord(" "): ord("c"), ord("c"): ord("c")}
    with torch.no_grad():
        model.head.weight.zero_()
        for before, after in follows.items():
            model.head.weight[after] += model.embedding.weight[before]
    score, predictions = evaluate_core_task(task, items, model, TOKENIZER)
    assert [prediction.correct for prediction in predictions] == [False, True, False]
    assert (score.accuracy, score.centred) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    raw = oracle_core.read_tasks(tmp_path)[0]
    assert oracle_core.predict_task(tmp_path, raw, [0, 1, 2], model, TOKENIZER) == {0: False, 1: True, 2: False}


def test_losses_equal_those_of_each_option_alone(bundle: Path) -> None:
    model = make_model(400)
    for task in load_bundle(bundle).tasks:
        items, _ = load_items(task)
        _, predictions = evaluate_core_task(task, items, model, TOKENIZER)
        for prediction in predictions[:4]:
            prompt, options = render_prompt(task, items, prediction.index, 42)
            rows = [[TOKENIZER.bos_id, *TOKENIZER.encode(text)] for text in options]
            prompt_ids = [TOKENIZER.bos_id, *TOKENIZER.encode(prompt)]
            question = build_question(task.kind, prompt_ids, rows, 400)
            counts = [count for tree in question.trees for count in tree.num_scored]
            alone = [
                oracle_core.mean_loss(model, row, len(row) - count) for row, count in zip(rows, counts, strict=True)
            ]
            assert prediction.losses == pytest.approx(alone, rel=1e-4)


class FakeWorld:
    """Ranks one after the other in one process: the last one sees what all of them gathered."""

    def __init__(self, rank: int, shares: list[dict]) -> None:
        self.rank, self.world_size, self.shares = rank, 3, shares

    def all_gather(self, value: dict) -> list[dict]:
        self.shares.append(value)
        return self.shares if len(self.shares) == 3 else [{**value, **dict.fromkeys(range(12), _NOTHING)}]


class _Nothing:
    chosen, correct, num_dropped = None, False, 1


_NOTHING = _Nothing()


@pytest.mark.parametrize("limit", [11, 1])
@pytest.mark.parametrize("label", ["arc_easy", "winogrande", "jeopardy"])
def test_ranks_share_the_items_and_together_have_the_score_of_one_process(bundle: Path, label: str, limit: int) -> None:
    model, shares = make_model(64), []
    task = next(task for task in load_bundle(bundle).tasks if task.label == label)
    items, _ = load_items(task)
    alone = evaluate_core_task(task, items, model, TOKENIZER, max_examples=limit)
    for rank in range(3):
        world = FakeWorld(rank, shares)
        together = evaluate_core_task(task, items, model, TOKENIZER, max_examples=limit, world=world)  # type: ignore[arg-type]
    assert [len(share) for share in shares] == ([4, 4, 3] if limit == 11 else [1, 0, 0])
    assert together[0] == alone[0]
    assert [p.chosen for p in together[1]] == [p.chosen for p in alone[1]]


def test_one_example_a_task_works_and_few_shot_examples_stay_the_same(bundle: Path) -> None:
    for task in load_bundle(bundle).tasks:
        items, _ = load_items(task)
        one = evaluate_core_task(task, items, make_model(), TOKENIZER, max_examples=1)
        all_of_them = evaluate_core_task(task, items, make_model(), TOKENIZER)
        assert one[0].total == 1
        assert one[1][0].losses == pytest.approx(all_of_them[1][0].losses, rel=1e-4)


def test_a_broken_model_has_no_score(bundle: Path) -> None:
    model = make_model()
    model.head.weight.data[3] = float("nan")
    for task in load_bundle(bundle).tasks[:1]:
        with pytest.raises(NumericalError, match="copa: the losses of question .* are not finite"):
            evaluate_core_task(task, load_items(task)[0], model, TOKENIZER)


def test_few_shot_examples_are_others_and_drawn_for_each_item() -> None:
    drawn = [draw_shots(20, 10, index, "42/copa") for index in range(20)]
    assert all(len(set(shots)) == 10 and index not in shots for index, shots in enumerate(drawn))
    assert len({tuple(shots) for shots in drawn}) == 20
    assert drawn == [draw_shots(20, 10, index, "42/copa") for index in range(20)]
    assert drawn != [draw_shots(20, 10, index, "43/copa") for index in range(20)]
    assert draw_shots(1, 10, 0, "x") == []
    seen = [number for index in range(20) for number in draw_shots(20, 1, index, "s")]
    assert len(set(seen)) > 8


def test_a_prompt_never_ends_in_a_space_and_the_continuation_brings_it(bundle: Path) -> None:
    for task in load_bundle(bundle).tasks:
        items, _ = load_items(task)
        prompt, options = render_prompt(task, items, 3, 42)
        assert not prompt[-1].isspace()
        assert options[0].startswith(prompt) or task.kind == "schema"
        assert options[0].count("\n") >= task.num_fewshot
        assert all(option == option.strip() for option in options)


@pytest.mark.parametrize(
    ("options", "prefix"),
    [([[9, 1], [9, 1, 2]], 1), ([[9, 1, 2], [9, 1, 2]], 2), ([[9, 3], [9, 4]], 1), ([[9, 1, 2, 3], [9, 1]], 1)],
)
def test_every_choice_keeps_a_token_to_score(options: list[list[int]], prefix: int) -> None:
    (tree,) = build_question("multiple_choice", [], options, 16).trees
    assert len(tree.prefix) == prefix and min(tree.num_scored) >= 1
    assert [[*tree.prefix, *tail] for tail in tree.tails] == options


@pytest.mark.parametrize("context", range(2, 9))
def test_cut_options_keep_their_newest_tokens(context: int) -> None:
    options = [[9, 1, 2, 3, 5, 6], [9, 1, 4, 4, 4, 5, 6]]
    question = build_question("schema", [], options, context)
    assert question.num_dropped == max(0, 6 - context)
    kept = [[*tree.prefix, *tail] for tree in question.trees for tail in tree.tails]
    counts = [count for tree in question.trees for count in tree.num_scored]
    for option, whole, count in zip(kept, options, counts, strict=True):
        assert option == whole[-len(option) :] and count == 2 and len(option) > count
        assert len(option) - 1 <= context
    assert max(map(len, kept)) == min(7, context + 1)


def test_batches_hold_every_row_once_within_the_budget() -> None:
    sizes = [(1 + 7 * number % 50, number % 13) for number in range(200)]
    for budget in (1, 64, 300, 10_000):
        batches = plan_batches(sizes, budget)
        assert sorted(number for batch in batches for number in batch) == list(range(200))
        for batch in batches:
            width = max(sizes[number][0] for number in batch) + max(sizes[number][1] for number in batch)
            assert len(batch) == 1 or len(batch) * width <= budget


def test_tokens_are_scored_like_the_whole_table_whatever_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight = torch.randn(40, 8), torch.randn(30, 8)
    targets = torch.randint(30, (40,))
    targets[:20] = (hidden @ weight.T).argmax(-1)[:20]
    monkeypatch.setattr("nanochat.evals.core.plan_chunk_tokens", lambda *_: 7)
    losses, hits = score_tokens(hidden, weight, targets, 15.0)
    logits = 15 * torch.tanh(hidden @ weight.T / 15)
    assert torch.allclose(losses, torch.nn.functional.cross_entropy(logits, targets, reduction="none"), atol=1e-5)
    assert hits.tolist() == (logits.argmax(-1) == targets).tolist() and hits[:20].all()


def test_only_all_22_tasks_make_a_mean_that_is_called_core() -> None:
    tasks = tuple(TaskScore(label, "multiple_choice", 0, 75, 100, 0.5) for label in CORE_TASKS)
    whole = CoreScore(tasks)
    assert whole.is_core and whole.name == "CORE" and whole.value == pytest.approx(0.5)
    assert whole.stderr == pytest.approx((0.75 * 0.25 / 100) ** 0.5 / 0.5 / 22**0.5)
    partial = CoreScore(tasks[1:])
    assert partial.name == "centred mean of 21 of the 22 CORE tasks" and not partial.is_core
    assert "and 1 others" in CoreScore((*tasks, TaskScore("mine", "schema", 0, 1, 2, 0.5))).name


def test_scores_are_centred_between_guessing_and_perfect() -> None:
    assert TaskScore("a", "schema", 0, 62, 100, 0.62).centred == pytest.approx(0.0)
    assert TaskScore("a", "schema", 0, 100, 100, 0.62).centred == pytest.approx(1.0)
    assert TaskScore("a", "schema", 0, 31, 100, 0.62).centred < 0
    values = TaskScore("a", "schema", 0, 1, 4, 0.5).to_dict()
    assert (
        values["accuracy"] == 0.25 and values["centred"] == -0.5 and values["stderr"] == pytest.approx(0.2165, abs=1e-4)
    )
