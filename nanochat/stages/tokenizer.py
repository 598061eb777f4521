"""The tokenizer stage: train on the pretraining text, save whole, measure compression."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nanochat
from nanochat.checkpoint.checkpoint import TEMPORARY
from nanochat.data.shards import iter_documents, load_manifest
from nanochat.errors import DataError
from nanochat.evals.compression import compare_vocabularies
from nanochat.files import write_text
from nanochat.stages.dataset import open_dataset
from nanochat.stages.inputs import Inputs, dump_inputs, hash_data, list_settings
from nanochat.stages.job import Job
from nanochat.tokenizer.bpe import NUM_BYTES, SPECIAL_TOKENS, Tokenizer, check_pattern, train_tokenizer

COMPRESSION_CHARS = 1_000_000
"""Characters of validation text that the compression is measured on."""


def run_tokenizer(job: Job) -> dict[str, Any]:
    """Train the run's tokenizer; the folder appears whole, its result.json included. Returns the result."""
    settings = job.settings.tokenizer
    dataset = job.settings.data.dataset
    folder = open_dataset(job.workspace, dataset, job.say, job.world)
    dataset_hash = load_manifest(folder).hash
    job.say(
        f"tokenizer: {settings.vocab_size:,} tokens from up to {settings.train_chars:,} characters of {dataset}, at "
        f"first {settings.doc_cap:,} of each document"
    )
    started = time.perf_counter()
    tokenizer, chars, doc_chars = _train(job, folder)
    seconds = time.perf_counter() - started
    ratio = measure_bytes_per_token(tokenizer, folder)
    result = {
        "stage": "tokenizer",
        "vocab_size": tokenizer.vocab_size,
        "kind": settings.kind,
        "train_chars": chars,
        "doc_cap": settings.doc_cap,
        "doc_chars": doc_chars,
        "bytes_per_token": ratio,
        "seconds": round(seconds, 3),
        "tokenizer_hash": tokenizer.hash,
        "dataset": dataset,
        "dataset_hash": dataset_hash,
        "nanochat_version": nanochat.__version__,
    }
    compression, _ = compare_vocabularies(job.run.name, tokenizer.encode, job.workspace.ranks)
    _save(job, tokenizer, result, compression)
    job.say(
        f"tokenizer: {tokenizer.vocab_size:,} tokens from {chars:,} characters in {seconds:.1f} s, "
        f"{ratio:.3f} bytes per token of validation text"
    )
    if doc_chars > settings.doc_cap:
        job.say(
            f"tokenizer.doc_cap = {settings.doc_cap:,} was raised to {doc_chars:,}: the text has too few documents for "
            f"tokenizer.train_chars = {settings.train_chars:,}"
        )
    if tokenizer.vocab_size != settings.vocab_size:
        job.say(
            f"tokenizer.vocab_size = {settings.vocab_size:,} is more than these {chars:,} characters give: "
            f"they have merges for {tokenizer.vocab_size:,} tokens"
        )
    return result


def _train(job: Job, folder: Path) -> tuple[Tokenizer, int, int]:
    """The tokenizer, the characters that it learnt from, and how many of the longest document were read."""
    settings = job.settings.tokenizer
    check_pattern(settings.pattern)
    num_merges = settings.vocab_size - NUM_BYTES - len(SPECIAL_TOKENS)
    chars = doc_chars = 0

    def count(texts: Iterator[tuple[int, str]]) -> Iterator[str]:
        nonlocal chars, doc_chars
        for start, text in texts:
            chars, doc_chars = chars + len(text), max(doc_chars, start + len(text))
            yield text

    tokenizer = train_tokenizer(
        count(iter_training_text(folder, settings.train_chars, settings.doc_cap)),
        settings.vocab_size,
        settings.pattern,
        progress=lambda done: job.display.advance("tokenizer", done, num_merges, "merges"),
        kind=settings.kind,
    )
    job.display.finish()
    return tokenizer, chars, doc_chars


def iter_training_text(folder: Path, train_chars: int, doc_cap: int) -> Iterator[tuple[int, str]]:
    """Characters of the training documents, train_chars in all, each piece with its place in its document.

    The first pass takes at most doc_cap of each document. Each further pass takes what follows, twice as much as the
    one before, until there are train_chars or the text has ended: so one book is read to its end.
    """
    start, size, left, has_more = 0, doc_cap, train_chars, True
    while has_more:
        has_more = False
        for document in iter_documents(folder, "train"):
            text = document[start : start + min(size, left)]
            has_more |= len(document) > start + size
            left -= len(text)
            if text:
                yield start, text
            if left <= 0:
                return
        start, size = start + size, 2 * size


def measure_bytes_per_token(tokenizer: Tokenizer, folder: Path) -> float:
    """UTF-8 bytes per token of the first validation text. Raises DataError if there is none."""
    num_bytes = num_tokens = num_chars = 0
    for document in iter_documents(folder, "val"):
        text = document[: COMPRESSION_CHARS - num_chars]
        num_chars += len(text)
        num_bytes += len(text.encode("utf-8", errors="replace"))
        num_tokens += len(tokenizer.encode(text))
        if num_chars >= COMPRESSION_CHARS:
            break
    if num_tokens == 0:
        raise DataError(
            f"the data set in {folder} has no validation text", f"nanochat download import DIR --name {folder.name}"
        )
    return num_bytes / num_tokens


def _save(job: Job, tokenizer: Tokenizer, result: dict[str, Any], compression: dict[str, Any]) -> None:
    final = job.run.tokenizer
    temporary, old = (final.with_name(f"{TEMPORARY}{name}") for name in ("tokenizer", "old_tokenizer"))
    for path in (temporary, old):
        shutil.rmtree(path, ignore_errors=True)
    tokenizer.save(temporary)
    inputs = Inputs(list_settings("tokenizer", job.settings), hash_data("tokenizer", job.settings, job.workspace))
    write_text(temporary / job.run.compression.name, json.dumps(compression, indent=1))
    write_text(temporary / "inputs.json", dump_inputs(inputs))
    write_text(temporary / "result.json", json.dumps(result, indent=1))
    if final.exists():
        final.rename(old)
    temporary.rename(final)
    shutil.rmtree(old, ignore_errors=True)
