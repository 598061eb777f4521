"""`nanochat data check` and `identity init`, through the whole command line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from nanochat.config.settings import GPT4_STYLE_PATTERN
from nanochat.tasks.catalog import build_task
from nanochat.tasks.check import check_file, split_by_mask
from nanochat.tokenizer.bpe import Tokenizer
from tests.cli.conftest import Outcome, make_run

GOOD = '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}'
CALL = (
    '{"messages": [{"role": "user", "content": "6*7?"}, {"role": "assistant", "content": ['
    '{"type": "python", "text": "6*7"}, {"type": "python_output", "text": "42"}, '
    '{"type": "text", "text": "It is 42."}]}]}'
)
Call = Callable[..., Outcome]


def test_all_errors_are_named_with_their_lines(nanochat: Call) -> None:
    Path("mine.jsonl").write_text("\n".join([GOOD, "{", "", '{"text": 1}', GOOD.replace('"user"', '"cat"'), CALL]))
    outcome = nanochat("data", "check", "mine.jsonl")
    assert outcome.code == 4
    for line in (2, 4, 5):
        assert f"mine.jsonl:{line}" in outcome.out
    assert "mine.jsonl:1" not in outcome.out and "mine.jsonl:3" not in outcome.out
    assert "3 of 5 lines cannot be read" in outcome.err and "sed -n 2p mine.jsonl" in outcome.err


def test_samples_show_the_mask_in_brackets_without_colour(nanochat: Call) -> None:
    Path("mine.jsonl").write_text(f"{GOOD}\n{CALL}\n")
    outcome = nanochat("data", "check", "mine.jsonl")
    assert outcome.code == 0 and "lengths are in bytes" in outcome.err
    assert "<|user_start|>Hi<|user_end|><|assistant_start|>[Hello<|assistant_end|>]" in outcome.out
    call = "[<|python_start|>6*7<|python_end|>]<|output_start|>42<|output_end|>[It is 42.<|assistant_end|>]"
    assert call in outcome.out


def test_layout_shape_and_masked_answers_are_shown(nanochat: Call) -> None:
    talk = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "No", "weight": 0}]
    talk += [{"from": "human", "value": "Bye"}, {"from": "gpt", "value": "Yes"}]
    Path("mine.json").write_text(json.dumps([{"id": "1", "conversations": talk}] * 2, indent=1))
    outcome = nanochat("data", "check", "mine.json")
    assert outcome.code == 0 and "JSON in the shape of ShareGPT (conversations, from, value)" in outcome.out
    assert "2 of 4 answers are not learnt (weight 0 or train false)" in outcome.out
    assert "too few to hold some out" in outcome.out and "conversation 2, what is learnt" in outcome.out
    assert "<|assistant_start|>No<|assistant_end|>" in outcome.out and "[Yes<|assistant_end|>]" in outcome.out
    facts = json.loads(nanochat("data", "check", "mine.json", "--json").out)
    assert (facts["answers"], facts["masked_answers"], facts["held_out"]) == (4, 2, 0)


def test_lengths_are_those_of_the_runs_tokenizer_and_context(nanochat: Call, home: Path) -> None:
    run = make_run(home, "r", ("tokenizer",), "", "model.context=16")
    Tokenizer([(72, 105)], GPT4_STYLE_PATTERN).save(run.tokenizer)
    Path("mine.jsonl").write_text(f"{GOOD}\n{CALL}\n")
    outcome = nanochat("data", "check", "mine.jsonl", "--run", "r", "--json")
    facts = json.loads(outcome.out)
    # bos, user_start, Hi, user_end, assistant_start, 5 letters, assistant_end
    assert facts["unit"] == "tokens" and facts["lengths"]["median"] in (11, facts["lengths"]["longest"])
    assert facts["total"] == 11 + facts["lengths"]["longest"] and facts["too_long_lines"] == [2]
    said = nanochat("data", "check", "mine.jsonl", "--run", "r").out
    assert "1 for a context of 16 (overlong = truncate): lines 2" in said


def test_what_comes_next_can_be_pasted(nanochat: Call, home: Path) -> None:
    """A run that has learnt its conversations needs a copy to learn others."""
    Path("my own.jsonl").write_text(f"{GOOD}\n")
    wish = "--set 'sft.mixture=custom:my own.jsonl'"
    for name, stages, following in (
        ("r", ("tokenizer", "base", "mid"), f"nanochat run --run r {wish}"),
        (
            "s",
            ("tokenizer", "base", "mid", "sft"),
            f"nanochat runs copy s s-2 --until mid && nanochat run --run s-2 {wish}",
        ),
    ):
        Tokenizer([(72, 105)], GPT4_STYLE_PATTERN).save(make_run(home, name, stages).tokenizer)
        assert nanochat("data", "check", "my own.jsonl", "--run", name).err.splitlines()[-1] == f"next:  {following}"


def test_pieces_are_the_whole_and_the_share_is_that_of_the_mask(tmp_path: Path) -> None:
    tokenizer = Tokenizer([], GPT4_STYLE_PATTERN)
    path = tmp_path / "a.jsonl"
    path.write_text(f"{GOOD}\n" * 7 + CALL)
    result = check_file(path, tokenizer, 10)
    assert [line for line, _ in result.samples] == [1, 4, 8]
    assert result.measured[0].num_tokens == 12 and result.measured[0].num_trained == 6
    assert result.too_long == (1, 2, 3, 4, 5, 6, 7, 8)
    conversation = build_task(f"custom:{path}")[7]
    assert "".join(text for text, _ in split_by_mask(conversation, tokenizer)).startswith("<|bos|><|user_start|>6*7?")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("data check none.jsonl", 3, "there is no file none.jsonl"),
        ("data check empty.jsonl", 4, "empty.jsonl has no conversations"),
        ("data check empty.jsonl --run r --preset demo", 2, "choose one"),
        ("identity init --name Ada --maker Jane --out empty.jsonl", 2, "empty.jsonl is there already"),
        ("identity init --name Ada --maker Jane --out .", 2, "is a folder"),
        ("identity init --name  --maker Jane", 2, "--name '' is no name"),
    ],
)
def test_what_cannot_be_done_is_said(nanochat: Call, words: str, code: int, said: str) -> None:
    Path("empty.jsonl").write_text("\n")
    outcome = nanochat(*words.split(" "))
    assert outcome.code == code and said in outcome.err, outcome.err


def test_an_identity_of_ones_own_is_a_task_that_passes_the_check(nanochat: Call) -> None:
    outcome = nanochat("identity", "init", "--name", "Ada", "--maker", "Jane Doe")
    assert outcome.code == 0 and "nanochat data check identity.jsonl" in outcome.err
    task = build_task("custom:identity.jsonl")
    texts = [message.text for conversation in task for message in conversation.messages]
    assert len(task) > 200 and not any("nanochat" in text for text in texts)
    assert "My name is Ada." in texts and "I was made by Jane Doe." in texts and "Hello Ada!" in texts
    assert nanochat("data", "check", "identity.jsonl").code == 0
    assert nanochat("identity", "init", "--name", "Bob", "--maker", "Jane", "--yes").code == 0
    assert "My name is Bob." in Path("identity.jsonl").read_text()
