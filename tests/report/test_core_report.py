"""What a report shows of CORE and of several answers to each question."""

import pytest

from nanochat.paths import RunPaths
from nanochat.report.collect import collect_report
from nanochat.report.compare import render_comparison
from nanochat.report.html import render_html
from nanochat.report.markdown import render_markdown
from tests.report.conftest import ATTACK, write_json

TASK = {
    "label": "arc_easy",
    "kind": "multiple_choice",
    "num_fewshot": 10,
    "total": 2376,
    "accuracy": 0.5,
    "stderr": 0.0103,
    "baseline": 0.25,
    "centred": 1 / 3,
    "truncated": 1234,
    "too_long": 0,
}
PARTIAL = {
    "stage": "base",
    "name": "centred mean of 1 of the 22 CORE tasks",
    "value": 1 / 3,
    "stderr": 0.0137,
    "is_core": False,
    "missing": {"squad": "no squad.jsonl"},
    "core_tasks": [TASK],
    "settings": {"max_per_task": 500},
}


@pytest.fixture
def scored(run: RunPaths) -> RunPaths:
    write_json(run.eval / "base_core.json", PARTIAL)
    write_json(
        run.eval / "sft_chatcore.json", {"name": "ChatCORE", "value": 0.25, "stderr": 0.0125, "tasks": ["gsm8k"]}
    )
    passed = {"pass_at": {"1": 0.25, "2": 0.4, "10": 0.75}, "answers_each": 10, "squares": 0.2}
    record = {"stage": "sft", "name": "gsm8k", "correct": 25, "total": 10, "accuracy": 0.25, "stderr": 0.1}
    write_json(run.eval / "sft_gsm8k.json", record | passed)
    return run


def test_markdown_shows_core_with_its_tasks_and_what_is_missing(scored: RunPaths) -> None:
    text = render_markdown(collect_report(scored))
    assert "| centred mean of 1 of the 22 CORE tasks | 0.3333 +- 0.0137 | - | - | - | - |" in text
    assert "### CORE tasks of base" in text
    assert "| arc\\_easy | multiple choice | 10 | 2,376 | 50.0 % | 1.0 % | 25.0 % | 0.333 | 1,234 | - |" in text
    assert "Without 1 of the CORE tasks, so this is not CORE: squad (no squad.jsonl)." in text
    assert "At most 500 questions of a task." in text
    assert "| ChatCORE of gsm8k | - | - | 0.2500 +- 0.0125 |" in text
    assert "| stage | score | answers each | pass@1 | pass@2 | pass@10 |" in text
    assert "| sft | gsm8k | 10 | 25.0 % | 40.0 % | 75.0 % |" in text


def test_html_shows_the_same(scored: RunPaths) -> None:
    text = render_html(collect_report(scored))
    for piece in (
        "CORE tasks of base",
        "arc_easy",
        "1,234",
        "no squad.jsonl",
        "ChatCORE",
        "pass@10",
        "75.0 %",
        "0.333",
    ):
        assert piece in text


def test_the_whole_mean_is_called_core_and_nothing_is_missing(scored: RunPaths) -> None:
    write_json(scored.eval / "base_core.json", PARTIAL | {"name": "CORE", "missing": {}, "settings": {}})
    text = render_markdown(collect_report(scored))
    assert "CORE: 0.3333 +- 0.0137, the mean of the centred accuracies." in text
    assert "Without" not in text and "At most" not in text


def test_two_runs_compare_the_tasks_of_core(scored: RunPaths) -> None:
    before = collect_report(scored)
    better = TASK | {"accuracy": 0.55}
    write_json(scored.eval / "base_core.json", PARTIAL | {"core_tasks": [better]})
    text = render_comparison(before, collect_report(scored))
    assert "| base | CORE: arc\\_easy | 50.0 % | 55.0 % | +5.0 % (3.4 std. errors) |" in text


def test_a_report_without_core_does_not_speak_of_it(run: RunPaths) -> None:
    for text in (render_markdown(collect_report(run)), render_html(collect_report(run))):
        assert "CORE" not in text and "pass@" not in text


@pytest.mark.parametrize(
    "changes",
    [
        {"core_tasks": 3, "missing": [], "settings": 1},
        {"core_tasks": [None, {"label": ATTACK, "kind": ATTACK, "accuracy": "x", "total": ATTACK}]},
        {"missing": {ATTACK: ATTACK}},
        {"name": ATTACK, "pass_at": {ATTACK: 1, "-1": 1, "2": ATTACK, "3": 0.5}, "answers_each": ATTACK},
        {"settings": {"max_per_task": ATTACK}},
    ],
)
def test_nonsense_in_a_score_is_neither_an_error_nor_markup(scored: RunPaths, changes: dict) -> None:
    write_json(scored.eval / "base_core.json", PARTIAL | changes)
    data = collect_report(scored)
    for text in (render_markdown(data), render_html(data)):
        assert "<script>" not in text.replace("\\<script\\>", "") and "\x1b" not in text
