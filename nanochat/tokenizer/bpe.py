"""Byte-level BPE: train, encode, decode, save and load. Knows no workspace and no conversations.

Ids: 0..255 are the bytes, then one id per merge in the order learnt, then the nine special tokens. Text never becomes a
special token: `encode` knows ordinary tokens only.

Sources: Sennrich et al. 2016 (BPE), Radford et al. 2019 (bytes).
"""

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from nanochat import _rustbpe
from nanochat.errors import DataError, MissingError, UsageError
from nanochat.files import sync_file, sync_folder
from nanochat.machine import usable_cores

SPECIAL_TOKENS = (
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
NUM_BYTES = 256
FEED_CHARS = 16_000_000
"""Characters handed to the trainer at once: enough to keep the threads busy, little enough to stay small."""

TOKENIZER_FILE = "tokenizer.json"
RANKS_FILE = "ranks.tiktoken"

PROBES = (
    *map(chr, range(128)),
    *"\x85\u00a0\u00ad\u00b2\u00e9\u0301\u0660\u0905\u093f\u200b\u2028\u20ac\u2167\u4e2d\ud55c\ue000\ufeff\U0001f600\U0010ffff",
    "Don't: 1234  \r\n\n\tnext",
)
"""Characters of every kind, and a text in which they meet."""

Pair = tuple[int, int]


def build_vocabulary(merges: Sequence[Pair]) -> list[bytes]:
    """Bytes of every ordinary token.

    >>> build_vocabulary([(104, 105), (256, 33)])[256:]
    [b'hi', b'hi!']
    """
    vocabulary = [bytes([byte]) for byte in range(NUM_BYTES)]
    for left, right in merges:
        vocabulary.append(vocabulary[left] + vocabulary[right])
    return vocabulary


class Tokenizer:
    """Merges and a splitting pattern, with one of two libraries to apply them.

    kind: "rustbpe" encodes with tiktoken, "huggingface" with tokenizers; both give the same ids.
    """

    def __init__(self, merges: Sequence[Pair], pattern: str, kind: str = "rustbpe") -> None:
        self.merges = [(int(left), int(right)) for left, right in merges]
        self.pattern = pattern
        self.kind = kind
        self.vocabulary = build_vocabulary(self.merges)
        self.special_ids = {token: len(self.vocabulary) + index for index, token in enumerate(SPECIAL_TOKENS)}
        self.longest_token = max(map(len, self.vocabulary))
        self.bos_id = self.special_ids["<|bos|>"]
        self.vocab_size = len(self.vocabulary) + len(SPECIAL_TOKENS)
        self.hash = hashlib.sha256(json.dumps([self.pattern, self.merges]).encode()).hexdigest()
        self.num_threads = usable_cores()
        """Threads of `encode_batch`; a process that shares the cores with other ranks sets its share."""
        self._codec = _build_codec(self)

    @property
    def token_bytes(self) -> list[int]:
        """Length in bytes of every token, 0 for special ones, for bits per byte."""
        return [len(token) for token in self.vocabulary] + [0] * len(SPECIAL_TOKENS)

    def encode(self, text: str) -> list[int]:
        """Ids of text as plain text: a typed special token becomes ordinary tokens."""
        return self._codec.encode_batch([text], 1)[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, on several threads where the library can."""
        return self._codec.encode_batch(list(texts), self.num_threads)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Bytes of ordinary tokens; special ones are written out, an id beyond the vocabulary raises IndexError."""
        num_ordinary = len(self.vocabulary)
        return b"".join(
            self.vocabulary[i] if i < num_ordinary else SPECIAL_TOKENS[i - num_ordinary].encode() for i in ids
        )

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json and ranks.tiktoken, each through a temporary file, the JSON last."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        ranks = "".join(f"{base64.b64encode(token).decode()} {i}\n" for i, token in enumerate(self.vocabulary))
        description = {
            "version": 1,
            "kind": self.kind,
            "pattern": self.pattern,
            "special_tokens": self.special_ids,
            "sha256": self.hash,
            "merges": self.merges,
        }
        for name, text in ((RANKS_FILE, ranks), (TOKENIZER_FILE, json.dumps(description))):
            temporary = folder / f".{name}.tmp"
            with open(temporary, "w", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                sync_file(file.fileno())
            temporary.replace(folder / name)
        sync_folder(folder)


def load_tokenizer(folder: str | Path, kind: str | None = None) -> Tokenizer:
    """Read what save wrote. kind: another implementation than the saved one.

    Raises MissingError where there is none and DataError where it is damaged.
    """
    path = Path(folder) / TOKENIZER_FILE
    if not path.is_file():
        raise MissingError(
            f"there is no tokenizer in {folder}", f"nanochat tokenize train --run {Path(folder).parent.name}"
        )
    again = f"mv -n {folder} {folder}.damaged; nanochat tokenize train --run {Path(folder).parent.name}"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        merges = [(left, right) for left, right in values["merges"]]
        tokenizer = Tokenizer(merges, values["pattern"], kind or values["kind"])
    except (ValueError, KeyError, TypeError, IndexError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is damaged: {error}", again) from error
    if tokenizer.hash != values.get("sha256"):
        raise DataError(f"{path} is damaged: its merges do not have the hash that was saved with them", again)
    return tokenizer


def check_pattern(pattern: str) -> None:
    """Raise UsageError unless every text is the sum of the pieces that a splitting pattern finds in it."""
    hint = "nanochat tokenize train --set 'tokenizer.pattern=...'  # without it, the default splits every text"
    try:
        for text in (*PROBES, "".join(PROBES)):
            pieces = _rustbpe.split(text, pattern)
            if "".join(pieces) != text or not all(pieces):
                raise UsageError(
                    f"tokenizer.pattern = {pattern!r} would lose text: of {text[:24]!r} it finds {pieces[:8]}", hint
                )
    except ValueError as error:
        raise UsageError(f"tokenizer.pattern = {pattern!r}: {error}", hint) from None


def train_tokenizer(
    texts: Iterable[Any],
    vocab_size: int,
    pattern: str,
    progress: Callable[[int], object] | None = None,
    num_threads: int | None = None,
    kind: str = "rustbpe",
) -> Tokenizer:
    """Learn vocab_size - 265 merges from texts, each a str or an Arrow array of strings.

    The vocabulary is smaller than asked where the text runs out of pairs; look at the result's vocab_size.
    progress: called with the number of merges learnt. num_threads: all cores where None; never changes the result.
    Raises UsageError where vocab_size has no room or there is no text.
    """
    num_merges = vocab_size - NUM_BYTES - len(SPECIAL_TOKENS)
    if num_merges < 0:
        raise UsageError(
            f"tokenizer.vocab_size = {vocab_size} is less than 256 bytes + {len(SPECIAL_TOKENS)} special tokens",
            "nanochat tokenize train --set tokenizer.vocab_size=1024",
        )
    if kind == "huggingface":
        merges = _train_huggingface(texts, num_merges, pattern)
    else:
        merges = _train_rust(texts, num_merges, pattern, progress, num_threads)
    return Tokenizer(merges, pattern, kind)


def _train_rust(
    texts: Iterable[Any],
    num_merges: int,
    pattern: str,
    progress: Callable[[int], object] | None,
    num_threads: int | None,
) -> list[Pair]:
    trainer = _rustbpe.Trainer(pattern, num_threads)
    waiting: list[str] = []
    chars = 0
    for text in texts:
        if not isinstance(text, str):
            trainer.feed_arrow(text)
            continue
        waiting.append(text)
        chars += len(text)
        if chars >= FEED_CHARS:
            trainer.feed(waiting)
            waiting, chars = [], 0
    trainer.feed(waiting)
    if trainer.num_pieces == 0:
        raise UsageError("there is no text to train a tokenizer on", "nanochat download import DIR --name NAME")
    return trainer.train(num_merges, progress)


def _train_huggingface(texts: Iterable[Any], num_merges: int, pattern: str) -> list[Pair]:
    from tokenizers import trainers

    from nanochat.tokenizer.export import UNICODE_OF_BYTE, build_huggingface

    tokenizer = build_huggingface([], pattern, special_ids={})
    trainer = trainers.BpeTrainer(
        vocab_size=NUM_BYTES + num_merges,
        show_progress=False,
        initial_alphabet=list(UNICODE_OF_BYTE.values()),
    )
    tokenizer.train_from_iterator((text if isinstance(text, str) else text.to_pylist() for text in texts), trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    ids = {UNICODE_OF_BYTE[byte]: byte for byte in range(NUM_BYTES)}
    pairs = []
    for left, right in merges:
        pairs.append((ids[left], ids[right]))
        ids[left + right] = NUM_BYTES + len(pairs) - 1
    return pairs


class _TiktokenCodec:
    """tiktoken with our ranks. The ids of a merge are its rank, as tiktoken wants."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        import tiktoken

        self._encoding = tiktoken.Encoding(
            name="nanochat",
            pat_str=tokenizer.pattern,
            mergeable_ranks={token: rank for rank, token in enumerate(tokenizer.vocabulary)},
            special_tokens={},
        )

    def encode_batch(self, texts: list[str], num_threads: int) -> list[list[int]]:
        clean = [text.encode("utf-8", errors="replace").decode("utf-8") for text in texts]  # lone surrogates
        if len(clean) == 1:
            return [self._encoding.encode_ordinary(clean[0])]
        return self._encoding.encode_ordinary_batch(clean, num_threads=num_threads)


class _HuggingFaceCodec:
    """tokenizers with our merges. Its threads are those of RAYON_NUM_THREADS, for the whole process."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        from nanochat.tokenizer.export import build_huggingface

        self._tokenizer = build_huggingface(tokenizer.merges, tokenizer.pattern, special_ids={})

    def encode_batch(self, texts: list[str], num_threads: int) -> list[list[int]]:
        clean = [text.encode("utf-8", errors="replace").decode("utf-8") for text in texts]
        return [encoding.ids for encoding in self._tokenizer.encode_batch(clean, add_special_tokens=False)]


def _build_codec(tokenizer: Tokenizer) -> _TiktokenCodec | _HuggingFaceCodec:
    if tokenizer.kind == "rustbpe":
        return _TiktokenCodec(tokenizer)
    if tokenizer.kind == "huggingface":
        return _HuggingFaceCodec(tokenizer)
    raise ValueError(f"kind = {tokenizer.kind!r} is neither rustbpe nor huggingface")
