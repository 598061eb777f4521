"""Import of your own text: a folder of txt, md, jsonl or parquet files to a data set of shards.

Knows neither tokens nor the workspace. Documents are shuffled, because training reads them in the order on disk.
"""

import hashlib
import json
import random
import shlex
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from nanochat.data.shards import Manifest, Progress, Shard, check_column, replace_manifest, write_shard_files
from nanochat.errors import DataError, UsageError

SUFFIXES = (".txt", ".md", ".jsonl", ".parquet")
VAL_SHARE = 0.01
"""Documents held out for validation where no folder is given for it."""
BUCKET_BYTES = 512_000_000
"""Source bytes that are shuffled in memory at once; larger folders pass through files on disk."""


@dataclass
class ImportReport:
    """What an import did; documents without any text are skipped, files of other kinds are ignored.

    repeated_documents: left out of the training text because they stand word for word in the validation text.
    """

    train_documents: int = 0
    val_documents: int = 0
    skipped_documents: int = 0
    repeated_documents: int = 0
    num_chars: int = 0
    num_files: int = 0
    ignored_files: int = 0
    manifest: Manifest = field(default_factory=lambda: Manifest(()))


def import_folder(
    source: Path,
    dest: Path,
    column: str = "text",
    key: str = "text",
    val: Path | None = None,
    seed: int = 42,
    progress: Progress | None = None,
    val_share: float = VAL_SHARE,
) -> ImportReport:
    """Make dest a data set of the text in source (a folder, searched whole, or one file); replaces what dest held.

    column: of parquet files. key: of JSONL lines. val: a folder or file with the validation text, which is never
    trained on, even where it lies in source or repeats in it; without it a share of source's documents is held out, at
    least one. A txt or md file is one document. progress(done, total) in source bytes.

    Raises UsageError for a wrong source, for folders without text and for a single document without val; DataError
    for a file that cannot be read, with its name and line. dest is unchanged where anything is raised.
    """
    if not 0 < val_share < 1:
        raise UsageError(
            f"val_share = {val_share} is not between 0 and 1", "leave it out for one document in a hundred"
        )
    report = ImportReport()
    val_files = list_files(val, report) if val else []
    files = list_files(source, report, apart_from=val_files)
    for path in (source, *([val] if val else [])):
        if dest.resolve() == path.resolve() or path.resolve() in dest.resolve().parents:
            raise UsageError(
                f"the data set {dest} would be inside its own source {path}", "choose another folder to import"
            )
    total, done = sum(path.stat().st_size for path in (*files, *val_files)), 0

    def read(paths: list[Path]) -> Iterator[str]:
        nonlocal done
        for path in paths:
            for text in iter_file(path, column, key):
                if text.strip():
                    report.num_chars += len(text)
                    yield text
                else:
                    report.skipped_documents += 1
            done += path.stat().st_size
            if progress:
                progress(done, total)

    dest.mkdir(parents=True, exist_ok=True)
    before = set(dest.glob("shard_*.parquet"))
    try:
        shards = _write(dest, read, files, val_files, seed, val_share, report)
        report.manifest = Manifest(tuple(shards))
    except BaseException:
        for path in set(dest.glob("shard_*.parquet")) - before:
            path.unlink()
        if not any(dest.iterdir()):
            dest.rmdir()
        raise
    replace_manifest(dest, report.manifest)
    return report


def list_files(source: Path, report: ImportReport, apart_from: Sequence[Path] = ()) -> list[Path]:
    """The files of a folder with text, in a fixed order, but for `apart_from` and hidden ones; adds to the report."""
    excluded = {path.resolve() for path in apart_from}
    if source.is_file():
        if source.suffix.lower() not in SUFFIXES:
            raise UsageError(f"{source} is none of {', '.join(SUFFIXES)}", "rename or convert the file")
        if source.resolve() in excluded:
            raise UsageError(f"{source} is both the training and the validation text", "choose another --val")
        report.num_files += 1
        return [source]
    if not source.is_dir():
        raise UsageError(f"there is no folder or file {source}", f"ls {source.parent}")
    found = [
        path
        for path in sorted(source.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(source).parts)
    ]
    files = [path for path in found if path.suffix.lower() in SUFFIXES]
    if not files:
        have = f"its {len(found)} files are of other kinds" if found else "it is empty"
        raise UsageError(f"{source} has no {', '.join(SUFFIXES)} file: {have}", "choose another folder to import")
    report.ignored_files += len(found) - len(files)
    files = [path for path in files if path.resolve() not in excluded]
    if not files:
        raise UsageError(
            f"every file of {source} is validation text: nothing is left to train on", "choose another --val"
        )
    report.num_files += len(files)
    return files


def iter_file(path: Path, column: str = "text", key: str = "text") -> Iterator[str]:
    """The documents of one file, empty ones too. Raises DataError, with the line where there is one."""
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            yield from _iter_parquet(path, column)
        elif suffix == ".jsonl":
            yield from _iter_jsonl(path, key)
        else:
            yield path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        name = shlex.quote(str(path))
        hint = f"iconv -f latin1 -t utf-8 {name} > {name}.utf8 && mv {name}.utf8 {name}  # if it is text at all"
        raise DataError(f"{path} is not UTF-8: {error.reason} at byte {error.start}", hint) from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def _iter_parquet(path: Path, column: str) -> Iterator[str]:
    try:
        with pq.ParquetFile(path) as file:
            check_column(file, path, column)
            for batch in file.iter_batches(batch_size=1_000, columns=[column]):
                for text in batch.column(0).to_pylist():
                    yield text or ""
    except pa.ArrowException as error:
        raise DataError(f"{path} is not a readable parquet file: {error}") from error


def _iter_jsonl(path: Path, key: str) -> Iterator[str]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            hint = f"sed -n {number}p {path}"
            try:
                line = raw.decode("utf-8-sig")
                if not line.strip():
                    continue
                value = json.loads(line)
            except UnicodeDecodeError as error:
                raise DataError(f"{path}:{number} is not UTF-8: {error.reason} at byte {error.start}", hint) from None
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}:{number} is not JSON: {error}", hint) from None
            if not isinstance(value, dict):
                raise DataError(f"{path}:{number} is not a JSON object", hint)
            if key not in value:
                have = ", ".join(map(repr, value)) or "none"
                raise DataError(f"{path}:{number} has no key {key!r}; its keys are {have}", "choose one with --key")
            text = value[key]
            if not isinstance(text, str):
                raise DataError(f"{path}:{number}: {key!r} is {type(text).__name__}, not text", hint)
            if any("\ud800" <= char <= "\udfff" for char in text):
                raise DataError(
                    f"{path}:{number}: {key!r} holds half a surrogate pair, which no UTF-8 text can hold", hint
                )
            yield text


def _write(
    dest: Path,
    read: Callable[[list[Path]], Iterator[str]],
    files: list[Path],
    val_files: list[Path],
    seed: int,
    val_share: float,
    report: ImportReport,
) -> list[Shard]:
    rng = random.Random(f"import/{seed}")
    held_out = list(read(val_files))
    if val_files and not held_out:
        raise UsageError(f"none of the {len(val_files)} validation files holds any text", "choose another --val")
    val_texts = {_digest(text) for text in held_out}

    def unseen() -> Iterator[str]:
        for text in read(files):
            if _digest(text) in val_texts:
                report.repeated_documents += 1
                report.num_chars -= len(text)
            else:
                yield text

    def shuffled() -> Iterator[str]:
        for bucket in _iter_buckets(unseen(), sum(path.stat().st_size for path in files), rng, dest):
            rng.shuffle(bucket)
            if not val_files:
                # From every bucket, so that the held-out text is a fair sample; a lone document stays in training.
                num_val = min(max(1, round(len(bucket) * val_share)), len(bucket) - 1)
                held_out.extend(bucket[:num_val])
                del bucket[:num_val]
            report.train_documents += len(bucket)
            yield from bucket

    shards = write_shard_files(dest, shuffled(), "train")
    if not shards:
        what = "text that is not in the validation text" if report.repeated_documents else "any text"
        raise UsageError(f"none of the {len(files)} files holds {what}", "choose another folder to import")
    if val_files:
        rng.shuffle(held_out)
    elif not held_out:
        raise UsageError(
            "there is one document, which cannot be for training and for validation",
            "add documents, cut it into several files, or give validation text with --val PATH",
        )
    report.val_documents = len(held_out)
    return shards + write_shard_files(dest, held_out, "val")


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _iter_buckets(documents: Iterator[str], num_bytes: int, rng: random.Random, dest: Path) -> Iterator[list[str]]:
    """Deal documents at random into buckets that fit in memory, and yield one bucket at a time."""
    num_buckets = -(-num_bytes // BUCKET_BYTES)
    if num_buckets <= 1:
        yield list(documents)
        return
    with tempfile.TemporaryDirectory(prefix=".import_", dir=dest) as folder:
        paths = [Path(folder) / f"{index}.jsonl" for index in range(num_buckets)]
        handles = [path.open("w", encoding="utf-8") for path in paths]
        try:
            for text in documents:
                rng.choice(handles).write(json.dumps(text) + "\n")
        finally:
            for handle in handles:
                handle.close()
        for path in paths:
            with path.open(encoding="utf-8") as file:
                bucket = [json.loads(line) for line in file]
            path.unlink()
            if bucket:
                yield bucket
