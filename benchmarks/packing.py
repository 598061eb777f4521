"""What it costs to throw the ends of long documents away: val bpb of a model trained on cropped rows and of one trained
on whole documents, each on cropped validation rows and on the whole validation text.

    nanochat train base --run real       # whole documents, as `benchmarks/real_text.toml` says
    python benchmarks/packing.py real    # the same steps, seed and rates on cropped rows; then the four scores

Cropping is the usual best fit: a row takes the largest document that fits what is left of it, and where none does, the
shortest one, whose end is dropped. Rows of long documents are then nothing but their beginnings.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nanochat.cli.launch import read_environ, resolve_home
from nanochat.data.batch import Batch, build_batch
from nanochat.data.shards import iter_documents
from nanochat.evals.bpb import measure_bits
from nanochat.model.gpt import GPT
from nanochat.model.optim import build_optimizer
from nanochat.paths import Workspace
from nanochat.plan import plan_base, plan_model
from nanochat.runtime import World, can_compile, name_device, pick_dtype, prepare_compile, use_all_cores
from nanochat.settings import Settings
from nanochat.stages.assemble import build_model, load_model
from nanochat.stages.base import iter_validation
from nanochat.stages.job import read_settings
from nanochat.tokenizer.bpe import Tokenizer
from nanochat.training.loop import Recipe, TrainState, train

POOL_DOCUMENTS = 200


@dataclass
class Cropped:
    """Rows (N, context + 1) int32 of cropped documents, and the tokens that never reached a row."""

    rows: np.ndarray
    dropped_share: float


def crop_documents(folder: Path, split: str, tokenizer: Tokenizer, row_tokens: int, max_rows: int) -> Cropped:
    """Best-fit rows until there are max_rows or the documents run out."""
    texts = iter(iter_documents(folder, split))  # type: ignore[arg-type]
    pool: list[np.ndarray] = []
    rows, used, seen = [], 0, 0
    while len(rows) < max_rows:
        while len(pool) < POOL_DOCUMENTS and (text := next(texts, None)) is not None:
            pool.append(np.array([tokenizer.bos_id, *tokenizer.encode(text)], dtype=np.int32))
        if not pool:
            break
        row, filled = np.full(row_tokens, tokenizer.bos_id, dtype=np.int32), 0
        while filled < row_tokens and pool:
            gap = row_tokens - filled
            lengths = [len(document) for document in pool]
            fitting = [length for length in lengths if length <= gap]
            document = pool.pop(lengths.index(max(fitting) if fitting else min(lengths)))
            row[filled : filled + len(document)] = document[:gap]
            filled += min(gap, len(document))
            seen += len(document)
            used += min(gap, len(document))
        if filled == row_tokens:
            rows.append(row)
    return Cropped(np.stack(rows), 1 - used / seen)


def iter_batches(rows: np.ndarray, size: int) -> Iterator[Batch]:
    for start in range(0, len(rows) - size + 1, size):
        yield build_batch(rows[start : start + size])


def train_on(rows: np.ndarray, settings: Settings, model: GPT, num_steps: int) -> float:
    """Take the run's steps over rows, again from the first where they run out; returns seconds."""
    order = np.random.default_rng(settings.runtime.seed)
    size = settings.batch.device_batch_size

    def endless() -> Iterator[Batch]:
        while True:
            yield from iter_batches(order.permutation(rows), size)

    batches, wish = endless(), settings.base
    micro = settings.batch.total_tokens // (size * settings.model.context)
    optimizer = build_optimizer(model, wish.matrix_lr, wish.embedding_lr, wish.head_lr, wish.weight_decay)
    recipe = Recipe(
        name="cropped",
        model=model,
        optimizer=optimizer,
        microbatches=lambda: [next(batches) for _ in range(micro)],
        loss=model.compile_loss() if can_compile()[0] else model.loss,
        num_steps=num_steps,
        warmup=wish.warmup,
        warmdown=wish.warmdown,
        grad_clip=wish.grad_clip,
        save=lambda state: None,
        resume_hint="python benchmarks/packing.py",
        log_every=50,
    )
    started = time.perf_counter()
    train(recipe, TrainState(), World(), lambda record: print(record["step"], record["smoothed_loss"], file=sys.stderr))
    return time.perf_counter() - started


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a finished base run")
    parser.add_argument("--home", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=None, help="write the JSON there too")
    options = parser.parse_args(arguments)

    workspace = Workspace(resolve_home(options.home, read_environ()))
    use_all_cores()
    prepare_compile(workspace.home / "compile")
    _, run, settings = read_settings(workspace.home / "runs" / options.run / "settings.json")
    device = torch.device("cpu")
    dtype, _ = pick_dtype(settings.runtime.dtype, device)
    ours, tokenizer, meta = load_model(workspace.resolve_model(f"{options.run}/base"), device, dtype)
    plan = plan_base(settings, vocab_size=tokenizer.vocab_size)
    context, size = settings.model.context, settings.batch.device_batch_size
    folder = workspace.home / "data" / settings.data.dataset

    num_rows = plan.num_steps * settings.batch.total_tokens // context
    training = crop_documents(folder, "train", tokenizer, context + 1, num_rows)
    validation = crop_documents(folder, "val", tokenizer, context + 1, settings.base.eval_tokens // context)
    cropped = build_model(plan_model(settings, tokenizer.vocab_size), device, dtype)
    cropped.init_weights(settings.runtime.seed)
    seconds = train_on(training.rows, settings, cropped, plan.num_steps)

    token_bytes: Tensor = torch.tensor(tokenizer.token_bytes)

    def score(model: GPT) -> dict[str, float]:
        model.eval()
        whole = measure_bits(
            model, iter_validation(folder, tokenizer, size, context), token_bytes, settings.base.eval_tokens
        )
        beginnings = measure_bits(model, iter_batches(validation.rows, size), token_bytes, settings.base.eval_tokens)
        return {"cropped_rows": round(beginnings.bpb, 4), "whole_text": round(whole.bpb, 4)}

    result = {
        "benchmark": "packing",
        "device": name_device(device),
        "dtype": str(dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "config": meta["config"],
        "steps": plan.num_steps,
        "tokens": plan.num_steps * settings.batch.total_tokens,
        "rates": {key: getattr(settings.base, key) for key in ("matrix_lr", "embedding_lr", "head_lr", "warmdown")},
        "cropping": {
            "dropped_share_train": round(training.dropped_share, 4),
            "dropped_share_val": round(validation.dropped_share, 4),
            "distinct_train_rows": len(training.rows),
            "val_rows": len(validation.rows),
            "seconds": round(seconds, 1),
        },
        "val_bpb": {"trained_on_cropped_rows": score(cropped), "trained_on_whole_text": score(ours)},
        "base_result": {
            key: value
            for key, value in json.loads(run.stage("base").result.read_text(encoding="utf-8")).items()
            if key in ("val_bpb", "tokens_per_second", "seconds", "dropped_share", "num_params", "dtype_reason")
        },
    }
    text = json.dumps(result, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
