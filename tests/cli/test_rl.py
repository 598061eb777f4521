"""`nanochat rl show`, on answers that were written by hand."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from nanochat.paths import RunPaths
from nanochat.training.metrics import MAX_TEXT_CHARS, RolloutFiles
from tests.cli.conftest import Outcome, make_run

Call = Callable[..., Outcome]


def answer(step: int, question: int, sample: int, text: str, reward: float, advantage: float) -> dict:
    return {
        "step": step,
        "question": question,
        "prompt": f"What is {question}+1?",
        "right": f"{question + 1}",
        "sample": sample,
        "answer": text,
        "reward": reward,
        "advantage": advantage,
        "tokens": len(text),
        "truncated": text == "cut",
    }


@pytest.fixture
def run(home: Path) -> RunPaths:
    """A run with answers of the steps 3 and 4."""
    run = make_run(home, "r", ("tokenizer", "base", "mid", "sft"), "rl")
    files = RolloutFiles(run.stage("rl").root / "rollouts", 10)
    files.write(3, [answer(3, 1, 0, "2", 1.0, 0.0)])
    texts = [("2", 1.0, 0.5), ("2", 1.0, 0.5), ("7\x1b[31m", 0.0, -0.5), ("cut", 0.0, -0.5)]
    files.write(
        4,
        [answer(4, 1, i, text, reward, gain) for i, (text, reward, gain) in enumerate(texts)]
        + [answer(4, 2, i, "9", 0.0, 0.0) for i in range(2)],
    )
    return run


def test_a_step_is_shown_by_question_with_equal_answers_counted(nanochat: Call, run: RunPaths) -> None:
    outcome = nanochat("rl", "show", "r")
    assert outcome.code == 0
    assert "step 4: 2 questions, 6 answers, 33.3% right" in outcome.out and ", 1 cut" in outcome.out
    assert "What is 1+1?  (right: 2; 2 of 4 right)" in outcome.out and "2x right  2" in outcome.out
    assert "2x wrong  9" in outcome.out and "1x wrong, cut  cut" in outcome.out
    assert "\x1b[31m" not in outcome.out, "what a model says does not colour the terminal"
    assert "step 3: 1 questions" in nanochat("rl", "show", "r", "--step", "3").out
    assert "What is 2+1?" not in nanochat("rl", "show", "r", "--limit", "1").out


@pytest.mark.parametrize(("order", "first"), [("--best", "+0.500 right"), ("--worst", "-0.500 wrong")])
def test_the_best_and_the_worst_come_first(nanochat: Call, run: RunPaths, order: str, first: str) -> None:
    lines = [line for line in nanochat("rl", "show", "r", order, "--limit", "2").out.splitlines() if "tokens  " in line]
    assert len(lines) == 2 and all(line.strip().startswith(first) for line in lines)


def test_json_is_the_answers(nanochat: Call, run: RunPaths) -> None:
    assert len(json.loads(nanochat("rl", "show", "r", "--json").out)) == 6
    best = json.loads(nanochat("rl", "show", "r", "--json", "--best", "--limit", "1").out)
    assert [record["advantage"] for record in best] == [0.5]


def test_what_is_not_there_or_damaged_is_a_sentence(nanochat: Call, run: RunPaths, home: Path) -> None:
    outcome = nanochat("rl", "show", "r", "--step", "2")
    assert outcome.code == 3 and "only those of 2 steps (3 to 4)" in outcome.err
    assert "nanochat rl show r --step 4" in outcome.err
    assert nanochat("rl", "show", "r", "--best", "--worst").code == 2
    path = run.stage("rl").root / "rollouts" / "step_000004.jsonl"
    whole = path.read_text()
    for content in ("", whole[:-20], "[1]\n", '{"step": 4}\n', whole.replace("0.5", '"0.5"'), "null"):
        path.write_text(content)
        outcome = nanochat("rl", "show", "r", "--worst")
        assert outcome.code == 4 and str(path) in outcome.err and "nanochat rl show r --step 3" in outcome.err, content
    path.write_bytes(b"\xff\xfe")
    assert nanochat("rl", "show", "r").code == 4
    make_run(home, "fresh", ("tokenizer", "base", "mid", "sft"))
    outcome = nanochat("rl", "show", "fresh")
    assert outcome.code == 3 and "nanochat train rl --run fresh" in outcome.err
    assert nanochat("rl", "show", "nobody").code == 3


def test_long_texts_are_cut_on_the_disk(tmp_path: Path) -> None:
    files = RolloutFiles(tmp_path, 1)
    files.write(1, [answer(1, 1, 0, "a" * 50_000, 0.0, 0.0)])
    assert len(files.read(1)[0]["answer"]) == MAX_TEXT_CHARS
