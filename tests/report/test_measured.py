"""What stands in a report beside losses and scores: practice, compression, how code was closed off."""

from pathlib import Path

import pytest

from nanochat.paths import RunPaths
from nanochat.report.collect import MAX_ROWS, collect_practice, collect_report
from nanochat.report.html import render_html
from nanochat.report.markdown import render_markdown
from tests.report.conftest import ATTACK, write_json, write_lines


def step(number: int, reward: float, **more: float) -> dict:
    facts = {"zero_variance": 0.5, "truncated": 0.0, "answer_tokens": 20.0}
    return {"step": number, "loss": -0.1, "reward": reward} | facts | more


@pytest.fixture
def practised(run: RunPaths) -> RunPaths:
    """The run with four steps of rl, of which the third was taken twice, and pass@k before, between and after."""
    lines = [
        {"step": 0, "pass_at_1": 0.25, "pass_at_1_stderr": 0.02, "pass_at_8": 0.5},
        step(1, 0.25, truncated=0.5),
        step(2, 0.5),
        {"step": 2, "pass_at_1": 0.5, "pass_at_8": 0.75},
        step(3, 0.0),
        step(3, 0.75),
        step(4, 1.0, answer_tokens=22.0),
        {"step": 4, "pass_at_1": 0.75, "pass_at_8": 0.875},
    ]
    write_lines(run.stage("rl").metrics, lines)
    write_json(run.stage("rl").result, {"stage": "rl", "step": 4, "task": "arithmetic"})
    return run


def test_practice_is_a_table_of_what_was_measured(practised: RunPaths) -> None:
    text = render_markdown(collect_report(practised))
    assert "| step | pass@1 | pass@8 | right in training | no signal | cut | tokens an answer |" in text
    assert "| 0 | 25.0 % | 50.0 % | - | - | - | - |" in text
    assert "| 2 | 50.0 % | 75.0 % | 37.5 % | 50.0 % | 25.0 % | 20.0 |" in text
    assert "| 4 | 75.0 % | 87.5 % | 87.5 % | 50.0 % | 0.0 % | 21.0 |" in text
    assert "| rl | done | 4 | - | - | - | - | - | - |" in text, "the loss of a policy gradient says nothing"


def test_the_page_draws_rewards_instead_of_a_loss(practised: RunPaths) -> None:
    section = render_html(collect_report(practised)).split('id="stage-rl"')[1]
    assert "Right answers in training" in section and "Training loss" not in section and "<svg" in section
    assert '<td class="number">87.5 %</td>' in section


def test_many_measurements_are_thinned_out_to_the_first_and_the_last() -> None:
    lines = [{"step": number, "pass_at_1": number / 100} for number in range(0, 101, 2)]
    steps = [row.step for row in collect_practice(lines).measured]
    assert len(steps) == MAX_ROWS and steps[0] == 0 and steps[-1] == 100 and steps == sorted(set(steps))


def test_records_that_hold_anything_are_no_error() -> None:
    lines = [{"step": "x", "reward": 1}, {"step": 1, "reward": "a"}, {"step": 2, "pass_at_1": None, "pass_at_x": 1}, {}]
    assert collect_practice(lines) == collect_practice([])


def test_compression_stands_with_the_tokenizer(run: RunPaths) -> None:
    kinds = [
        {"kind": "english", "bytes": 1200, "bytes_per_token": {"demo": 3.456, "gpt4": 4.5}},
        {"kind": ATTACK, "bytes": None, "bytes_per_token": {"demo": "x"}},
        "neither",
    ]
    write_json(run.compression, {"kinds": kinds})
    text = render_markdown(collect_report(run))
    assert "| bytes per token | bytes | demo | gpt4 |" in text and "| english | 1,200 | 3.46 | 4.50 |" in text
    page = render_html(collect_report(run))
    assert "3.46" in page and "<script>" not in page


@pytest.mark.parametrize(
    ("isolation", "said"),
    [
        ({"level": "strong", "layers": ["landlock", "seccomp"], "gaps": []}, "strong isolation (landlock, seccomp)"),
        ({"level": "weak", "layers": [], "gaps": ["read files"]}, "weak isolation (no layer; it could read files)"),
    ],
)
def test_a_score_of_code_says_how_it_was_closed_off(run: RunPaths, isolation: dict, said: str) -> None:
    write_json(run.eval / "sft_humaneval.json", {"accuracy": 0.5, "total": 164, "correct": 82, "isolation": isolation})
    data = collect_report(run)
    assert f"Code of sft humaneval ran in {said}." in render_html(data)
    assert "Code of sft humaneval ran in " in render_markdown(data)


def test_the_tokenizer_stage_measures_its_compression(trained_home: Path) -> None:
    data = collect_report(RunPaths(trained_home / "runs" / "whole"))
    kinds = {kind.kind: dict(kind.ratios) for kind in data.stages[0].compression}
    assert kinds["english"]["whole"] > 1 and len(kinds) >= 5
