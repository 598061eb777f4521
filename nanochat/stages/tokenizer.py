"""The tokenizer stage: train on the pretraining text, save whole, measure compression."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nanochat
from nanochat.checkpoint import TEMPORARY
from nanochat.data.shards import iter_documents, load_manifest
from nanochat.errors import DataError
from nanochat.evals.compression import compare_vocabularies
from nanochat.stages.dataset import open_dataset
from nanochat.stages.display import Display
from nanochat.stages.inputs import Inputs, dump_inputs, hash_data, list_settings
from nanochat.stages.job import Job
from nanochat.tokenizer.bpe import NUM_BYTES, SPECIAL_TOKENS, Tokenizer, train_tokenizer

COMPRESSION_CHARS = 1_000_000
"""Characters of validation text that the compression is measured on."""


def run_tokenizer(job: Job, display: Display) -> dict[str, Any]:
    """Train the run's tokenizer; the folder appears whole, its result.json included. Returns the result."""
    settings = job.settings.tokenizer
    folder = open_dataset(job.workspace, job.settings.data.dataset, display, job.world)
    display.say(
        f"tokenizer: {settings.vocab_size:,} tokens from up to {settings.train_chars:,} characters of "
        f"{job.settings.data.dataset}, {settings.doc_cap:,} of each document"
    )
    num_merges = settings.vocab_size - NUM_BYTES - len(SPECIAL_TOKENS)
    started = time.perf_counter()
    chars = 0

    def count(texts: Iterator[str]) -> Iterator[str]:
        nonlocal chars
        for text in texts:
            chars += len(text)
            yield text

    tokenizer = train_tokenizer(
        count(iter_training_text(folder, settings.train_chars, settings.doc_cap)),
        settings.vocab_size,
        settings.pattern,
        progress=lambda done: display.advance("tokenizer", done, num_merges, "merges"),
        kind=settings.kind,
    )
    display.finish()
    seconds = time.perf_counter() - started
    ratio = measure_bytes_per_token(tokenizer, folder)
    result = {
        "stage": "tokenizer",
        "vocab_size": tokenizer.vocab_size,
        "kind": settings.kind,
        "train_chars": chars,
        "doc_cap": settings.doc_cap,
        "bytes_per_token": ratio,
        "seconds": round(seconds, 3),
        "tokenizer_hash": tokenizer.hash,
        "dataset": job.settings.data.dataset,
        "dataset_hash": load_manifest(folder).hash,
        "nanochat_version": nanochat.__version__,
    }
    compression, _ = compare_vocabularies(job.run.name, tokenizer.encode, job.workspace.ranks)
    _save(job, tokenizer, result, compression)
    display.say(
        f"tokenizer: {tokenizer.vocab_size:,} tokens in {seconds:.1f} s, {ratio:.3f} bytes per token of validation text"
    )
    if tokenizer.vocab_size != settings.vocab_size:
        display.say(
            f"tokenizer.vocab_size = {settings.vocab_size:,} is more than this text gives: "
            f"it has merges for {tokenizer.vocab_size:,} tokens"
        )
    return result


def iter_training_text(folder: Path, train_chars: int, doc_cap: int) -> Iterator[str]:
    """The first train_chars characters of the training documents, at most doc_cap of each."""
    left = train_chars
    for document in iter_documents(folder, "train"):
        text = document[: min(doc_cap, left)]
        left -= len(text)
        yield text
        if left <= 0:
            return


def measure_bytes_per_token(tokenizer: Tokenizer, folder: Path) -> float:
    """UTF-8 bytes per token of the first validation text. Raises DataError where there is none."""
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
    (temporary / job.run.compression.name).write_text(json.dumps(compression, indent=1) + "\n", encoding="utf-8")
    inputs = Inputs(list_settings("tokenizer", job.settings), hash_data("tokenizer", job.settings, job.workspace))
    (temporary / "inputs.json").write_text(dump_inputs(inputs) + "\n", encoding="utf-8")
    (temporary / "result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if final.exists():
        final.rename(old)
    temporary.rename(final)
    shutil.rmtree(old, ignore_errors=True)
