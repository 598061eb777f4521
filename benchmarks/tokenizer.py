"""Our BPE trainer beside the `rustbpe` wheel and the `tokenizers` trainer, each in a process of its own.

    python benchmarks/tokenizer.py FOLDER [--vocab 32768] [--column text] [--output results/tokenizer.json]

FOLDER holds parquet files. A child reads them, and time and peak memory are those of training alone: the memory is the
peak while training over the peak once the text is read. Ratios count, seconds depend on the machine.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

TRAINERS = ("nanochat", "rustbpe", "tokenizers")


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Peak:
    """Samples the resident memory on a thread, a hundred times a second."""

    def __enter__(self) -> "Peak":
        self.start = self.peak = resident_bytes()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.01):
            self.peak = max(self.peak, resident_bytes())

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.peak = max(self.peak, resident_bytes())


def train(name: str, folder: Path, column: str, vocab: int) -> dict:
    import pyarrow.parquet as pq

    from nanochat.config.settings import GPT4_STYLE_PATTERN

    columns = [pq.read_table(path, columns=[column])[column] for path in sorted(folder.glob("*.parquet"))]
    arrays = [chunk for item in columns for chunk in item.chunks]
    texts = [] if name == "nanochat" else [text for array in arrays for text in array.to_pylist()]
    with Peak() as memory:
        start = time.perf_counter()
        if name == "nanochat":
            from nanochat import _rustbpe

            trainer = _rustbpe.Trainer(GPT4_STYLE_PATTERN)
            for array in arrays:
                trainer.feed_arrow(array)
            merges = len(trainer.train(vocab - 256))
        elif name == "rustbpe":
            import rustbpe

            other = rustbpe.Tokenizer()
            other.train_from_iterator(iter(texts), vocab, pattern=GPT4_STYLE_PATTERN)
            merges = len(other.get_mergeable_ranks()) - 256
        else:
            from tokenizers import trainers

            from nanochat.tokenizer.export import UNICODE_OF_BYTE, build_huggingface

            model = build_huggingface([], GPT4_STYLE_PATTERN, special_ids={})
            alphabet = list(UNICODE_OF_BYTE.values())
            model.train_from_iterator(
                iter(texts), trainers.BpeTrainer(vocab_size=vocab, show_progress=False, initial_alphabet=alphabet)
            )
            merges = model.get_vocab_size() - 256
        seconds = time.perf_counter() - start
    return {"trainer": name, "seconds": seconds, "memory_bytes": memory.peak - memory.start, "merges": merges}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--vocab", type=int, default=32_768)
    parser.add_argument("--column", default="text")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--only", choices=TRAINERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(train(options.only, options.folder, options.column, options.vocab)))
        return
    rows = []
    for name in TRAINERS:
        command = [sys.executable, __file__, str(options.folder), "--only", name, "--vocab", str(options.vocab)]
        done = subprocess.run([*command, "--column", options.column], check=True, stdout=subprocess.PIPE, text=True)
        rows.append(json.loads(done.stdout))
        print(json.dumps(rows[-1]), flush=True)
    ours = rows[0]
    result = {
        "vocab": options.vocab,
        "cores": os.cpu_count(),
        "rows": rows,
        "time_ratio": {row["trainer"]: row["seconds"] / ours["seconds"] for row in rows[1:]},
        "memory_ratio": {row["trainer"]: row["memory_bytes"] / ours["memory_bytes"] for row in rows[1:]},
    }
    print(json.dumps(result, indent=1))
    if options.output:
        options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
