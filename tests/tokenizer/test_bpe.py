"""Both implementations give the oracle's ids, text stays text, and a damaged file is noticed."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as HuggingFaceTokenizer

from nanochat.config.settings import GPT4_STYLE_PATTERN
from nanochat.errors import DataError, MissingError, UsageError
from nanochat.machine import usable_cores
from nanochat.tasks.demo import generate_documents
from nanochat.tokenizer.bpe import SPECIAL_TOKENS, Tokenizer, load_tokenizer, train_tokenizer
from nanochat.tokenizer.export import build_huggingface
from tests import oracle_bpe

TEXTS = list(generate_documents(60_000, seed=5, split="train"))
TOKENIZER = train_tokenizer(TEXTS, 700, GPT4_STYLE_PATTERN)
OTHER = Tokenizer(TOKENIZER.merges, TOKENIZER.pattern, "huggingface")


def test_the_vocabulary_is_bytes_then_merges_then_special_tokens() -> None:
    assert TOKENIZER.vocab_size == 700
    assert [TOKENIZER.special_ids[token] for token in SPECIAL_TOKENS] == list(range(691, 700))
    assert TOKENIZER.token_bytes[:256] == [1] * 256
    assert TOKENIZER.token_bytes[-9:] == [0] * 9


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=60) | st.sampled_from(TEXTS).map(lambda text: text[:200]))
def test_ids_are_the_oracle_s_in_both_implementations_and_decode_to_the_text(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert ids == OTHER.encode(text) == oracle_bpe.encode(text, TOKENIZER.merges, TOKENIZER.pattern)
    assert TOKENIZER.decode(ids) == text
    assert sum(TOKENIZER.token_bytes[i] for i in ids) == len(text.encode())


@pytest.mark.parametrize("special", SPECIAL_TOKENS)
@pytest.mark.parametrize("tokenizer", [TOKENIZER, OTHER], ids=["rustbpe", "huggingface"])
def test_a_typed_special_token_is_ordinary_text(tokenizer: Tokenizer, special: str) -> None:
    ids = tokenizer.encode(f"before{special}after")
    assert max(ids) < tokenizer.bos_id
    assert tokenizer.decode(ids) == f"before{special}after"


def test_a_batch_is_encoded_like_its_texts() -> None:
    for tokenizer in (TOKENIZER, OTHER):
        assert tokenizer.encode_batch(TEXTS[:20]) == [tokenizer.encode(text) for text in TEXTS[:20]]
        assert tokenizer.encode_batch([]) == []
        assert tokenizer.encode("") == []


def test_a_process_that_shares_its_cores_encodes_on_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer([(97, 98)], GPT4_STYLE_PATTERN)
    assert tokenizer.num_threads == usable_cores()
    used: list[int] = []

    class Encoding:
        def encode_ordinary_batch(self, texts: list[str], num_threads: int) -> list[list[int]]:
            used.append(num_threads)
            return [[] for _ in texts]

    monkeypatch.setattr(tokenizer._codec, "_encoding", Encoding())
    tokenizer.num_threads = 3
    tokenizer.encode_batch(["a", "b"])
    assert used == [3]


def test_text_with_a_lone_surrogate_is_encoded_with_a_question_mark() -> None:
    assert TOKENIZER.decode(TOKENIZER.encode("a\ud800b")) == "a?b"
    assert OTHER.encode("a\ud800b") == TOKENIZER.encode("a\ud800b")


def test_both_trainers_give_usable_merges_for_the_same_vocabulary() -> None:
    trained = train_tokenizer(TEXTS, 500, GPT4_STYLE_PATTERN, kind="huggingface")
    assert trained.vocab_size == 500
    assert trained.decode(trained.encode(TEXTS[0])) == TEXTS[0]
    assert trained.encode(TEXTS[0]) == Tokenizer(trained.merges, trained.pattern, "rustbpe").encode(TEXTS[0])


def test_a_tiny_text_gives_a_smaller_vocabulary() -> None:
    assert train_tokenizer(["ab"], 1000, GPT4_STYLE_PATTERN).vocab_size == 256 + 1 + 9


@pytest.mark.parametrize(
    ("texts", "vocab_size", "fragment"), [([], 300, "no text"), (["a"], 264, "less than 256 bytes")]
)
def test_what_cannot_be_trained_is_a_sentence(texts: list[str], vocab_size: int, fragment: str) -> None:
    with pytest.raises(UsageError, match=fragment):
        train_tokenizer(texts, vocab_size, GPT4_STYLE_PATTERN)


def test_a_saved_tokenizer_loads_as_the_same(tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path / "tokenizer")
    for kind in ("rustbpe", "huggingface"):
        loaded = load_tokenizer(tmp_path / "tokenizer", kind)
        assert (loaded.hash, loaded.kind) == (TOKENIZER.hash, kind)
        assert loaded.encode(TEXTS[1]) == TOKENIZER.encode(TEXTS[1])
    assert sorted(path.name for path in (tmp_path / "tokenizer").iterdir()) == ["ranks.tiktoken", "tokenizer.json"]


def test_the_rank_file_is_one_that_tiktoken_reads(tmp_path: Path) -> None:
    from tiktoken.load import load_tiktoken_bpe

    TOKENIZER.save(tmp_path)
    ranks = load_tiktoken_bpe(str(tmp_path / "ranks.tiktoken"))
    assert ranks == {token: rank for rank, token in enumerate(TOKENIZER.vocabulary)}


def test_an_absent_tokenizer_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(MissingError) as caught:
        load_tokenizer(tmp_path / "myrun" / "tokenizer")
    assert caught.value.hint == "nanochat tokenize train --run myrun"


@pytest.mark.parametrize("damage", ["cut", "merge", "key", "not json"])
def test_a_damaged_tokenizer_is_refused(tmp_path: Path, damage: str) -> None:
    TOKENIZER.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    values = json.loads(path.read_text())
    values["merges"][3] = [1, 2]
    damaged = {"cut": path.read_text()[:-9], "merge": json.dumps(values), "key": "{}", "not json": "hello"}
    path.write_text(damaged[damage])
    with pytest.raises(DataError, match="damaged"):
        load_tokenizer(tmp_path)


def test_the_exported_tokenizer_gives_the_same_ids_and_knows_the_special_tokens() -> None:
    exported = build_huggingface(TOKENIZER.merges, TOKENIZER.pattern, TOKENIZER.special_ids)
    read = HuggingFaceTokenizer.from_str(exported.to_str())
    assert read.encode(TEXTS[2], add_special_tokens=False).ids == TOKENIZER.encode(TEXTS[2])
    assert read.encode("<|bos|>", add_special_tokens=False).ids == [TOKENIZER.bos_id]
