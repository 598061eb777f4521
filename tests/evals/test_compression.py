import base64
import json
from pathlib import Path

import pytest

from nanochat.cli.main import main
from nanochat.config.settings import GPT4_STYLE_PATTERN
from nanochat.errors import DataError
from nanochat.evals.compression import GPT4_PATTERN, SAMPLES, load_ranks, measure_compression
from nanochat.tokenizer.bpe import Tokenizer
from tests.cli.conftest import make_run

MERGES = [(ord("t"), ord("h")), (256, ord("e")), (ord(" "), 257)]


def write_ranks(path: Path, tokens: list[bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\n".join(base64.b64encode(token) + f" {rank}".encode() for rank, token in enumerate(tokens)))
    return path


def test_tokens_of_a_byte_are_a_ratio_of_one_and_merges_raise_it() -> None:
    plain, merged = Tokenizer([], GPT4_STYLE_PATTERN), Tokenizer(MERGES, GPT4_STYLE_PATTERN)
    for found in measure_compression({"plain": plain.encode, "merged": merged.encode}):
        assert found.ratio("plain") == 1 and found.num_bytes == len(SAMPLES[found.kind].encode())
        text = SAMPLES[found.kind]
        assert (found.ratio("merged") > 1) == ("th" in text)
    assert {"english", "code", "numbers", "russian"} <= set(SAMPLES)


def test_a_rank_file_gives_the_same_tokens_as_the_tokenizer_that_wrote_it(tmp_path: Path) -> None:
    tokenizer = Tokenizer(MERGES, GPT4_PATTERN)
    encode = load_ranks(write_ranks(tmp_path / "a.tiktoken", tokenizer.vocabulary), GPT4_PATTERN)
    for text in SAMPLES.values():
        assert encode(text) == tokenizer.encode(text)


@pytest.mark.parametrize("data", [b"", b"YQ== 0\n", b"?? x y\n", b"\xff\xfe"])
def test_a_damaged_rank_file_is_named(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.tiktoken"
    path.write_bytes(data)
    with pytest.raises(DataError, match="a.tiktoken is not a rank file"):
        load_ranks(path, GPT4_PATTERN)


def test_the_command_compares_with_what_is_at_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("NANOCHAT_HOME", str(home))
    Tokenizer(MERGES, GPT4_STYLE_PATTERN).save(make_run(home, "r", ("tokenizer",)).tokenizer)
    write_ranks(home / "ranks" / "cl100k_base.tiktoken", Tokenizer([], GPT4_PATTERN).vocabulary)
    assert main(["tokenize", "eval", "--run", "r", "--json"]) == 0
    captured = capsys.readouterr()
    rows = {row["kind"]: row["bytes_per_token"] for row in json.loads(captured.out)}
    assert rows["english"]["gpt4"] == 1 < rows["english"]["r"] and "gpt2" not in rows["english"]
    assert "gpt2 is not compared" in captured.err
    assert main(["tokenize", "eval", "--run", "r"]) == 0
    assert "bytes per token" in capsys.readouterr().out
