"""The Rust trainer learns what the oracle learns, on any number of threads, and stops when asked."""

import signal
import subprocess
import sys
import textwrap
import time
import unicodedata

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat import _rustbpe
from nanochat.config.settings import GPT4_STYLE_PATTERN
from nanochat.tasks.demo import generate_documents
from tests import oracle_bpe
from tests.patience import PATIENCE_SECONDS

WORDS = r"\w+|\s+"
MIXED = "aAsStTdDzZ 'lLvVeErR09٣Ⅷé字ſ\t\n\r\u00a0\u2003\u0085.,!-\"\u0301😀"


def learn(
    texts: list[str], num_merges: int, pattern: str = GPT4_STYLE_PATTERN, threads: int = 2
) -> list[tuple[int, int]]:
    trainer = _rustbpe.Trainer(pattern, threads)
    trainer.feed(texts)
    return trainer.train(num_merges)


def test_the_pattern_of_the_settings_is_the_one_split_by_hand() -> None:
    assert _rustbpe.GPT4_STYLE_PATTERN == GPT4_STYLE_PATTERN


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=MIXED, max_size=40))
def test_pieces_equal_those_of_the_regex_module(text: str) -> None:
    assert _rustbpe.split(text, GPT4_STYLE_PATTERN) == oracle_bpe.split(text, GPT4_STYLE_PATTERN)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs", "Cn"]), max_size=40))
def test_any_text_splits_as_the_regex_module_does(text: str) -> None:
    assert _rustbpe.split(text, GPT4_STYLE_PATTERN) == oracle_bpe.split(text, GPT4_STYLE_PATTERN)


def test_every_character_splits_as_in_the_regex_module() -> None:
    """All that Python's own table knows: the newest characters differ between Unicode versions."""
    known = [chr(code) for code in range(0x11_0000) if unicodedata.category(chr(code)) not in ("Cn", "Cs", "Co")]
    text = "".join(f"a{character}1{character} {character}\n" for character in known)
    assert _rustbpe.split(text, GPT4_STYLE_PATTERN) == oracle_bpe.split(text, GPT4_STYLE_PATTERN)


@pytest.mark.parametrize("pattern", [GPT4_STYLE_PATTERN, WORDS])
def test_merges_equal_the_oracle_s(pattern: str) -> None:
    texts = list(generate_documents(20_000, seed=3, split="train"))
    assert learn(texts, 250, pattern) == oracle_bpe.train(texts, 250, pattern)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(alphabet="ab c", max_size=30), max_size=6))
def test_merges_equal_the_oracle_s_where_everything_repeats_and_ties(texts: list[str]) -> None:
    assert learn(texts, 20) == oracle_bpe.train(texts, 20, GPT4_STYLE_PATTERN)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_threads_and_portions_do_not_change_the_merges(threads: int) -> None:
    texts = list(generate_documents(50_000, seed=4, split="train"))
    expected = learn(texts, 400, threads=1)
    trainer = _rustbpe.Trainer(GPT4_STYLE_PATTERN, threads)
    for start in range(0, len(texts), 7):
        trainer.feed(texts[start : start + 7])
    assert trainer.train(400) == expected


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_arrow_arrays_count_as_their_strings(kind: pa.DataType) -> None:
    texts = ["hello hello", "", "wörld wörld", "more of it"]
    trainer = _rustbpe.Trainer(GPT4_STYLE_PATTERN, 2)
    trainer.feed_arrow(pa.array(["skipped", None, *texts], kind)[2:])
    assert trainer.train(30) == learn(texts, 30)


def test_an_arrow_array_of_numbers_is_refused() -> None:
    with pytest.raises(TypeError, match="strings"):
        _rustbpe.Trainer(GPT4_STYLE_PATTERN).feed_arrow(pa.array([1, 2]))


def test_a_wrong_pattern_is_a_sentence() -> None:
    with pytest.raises(ValueError, match="not a regular expression"):
        _rustbpe.Trainer("(")


def test_progress_ends_with_all_merges_and_its_error_stops_the_training() -> None:
    seen: list[int] = []
    trainer = _rustbpe.Trainer(GPT4_STYLE_PATTERN)
    trainer.feed(["abc abc abd"])
    merges = trainer.train(4, seen.append)
    assert seen[-1] == len(merges) == 4


def test_ctrl_c_is_heard_within_a_second() -> None:
    program = """
        import random, sys
        from nanochat import _rustbpe
        words = ["".join(random.Random(i).choices("abcdefgh", k=400)) for i in range(20_000)]
        trainer = _rustbpe.Trainer(r".+", 1)
        trainer.feed(words)
        try:
            print("ready", flush=True)
            trainer.train(10**6)
        except KeyboardInterrupt:
            sys.exit(42)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=PATIENCE_SECONDS) == 42  # the bound on hanging; benchmarks measure the second
