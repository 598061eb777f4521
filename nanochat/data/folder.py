"""Import of your own text: a folder of txt, md, jsonl or parquet files to a data set of shards.

Knows neither tokens nor the workspace. Documents are shuffled, because training reads them in the order on disk.
"""

import os
import shlex
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nanochat.data.documents import SUFFIXES, Reading, iter_file, measure_text, name_read_error
from nanochat.data.holdout import digest_text, hold_out, iter_buckets, plan_val_bytes, read_texts, write_text
from nanochat.data.shards import Manifest, Shard, Split, replace_manifest, write_shard_files
from nanochat.errors import DataError, MissingError, UsageError
from nanochat.files import LOCK, disk_errors, lock_folder

Progress = Callable[[str, int, int], None]
"""progress(what, done, total) in bytes."""
PROGRESS_BYTES = 1 << 20
WORK = ".import"
"""Folder for files that come and go, in that of the data set."""


@dataclass
class ImportReport:
    """What an import did. left_out: files, documents, lines and rows, counted by the reason.

    num_cut: documents that were cut into pieces for their length. num_stretches: long documents of which stretches are
    validation text. num_recoded: files and lines that were not UTF-8.
    """

    documents: Counter[Split] = field(default_factory=Counter)
    chars: Counter[Split] = field(default_factory=Counter)
    num_files: int = 0
    num_cut: int = 0
    num_stretches: int = 0
    num_recoded: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    manifest: Manifest = field(default_factory=lambda: Manifest(()))


def import_folder(
    source: Path,
    dest: Path,
    column: str = "text",
    val: Path | None = None,
    seed: int = 42,
    val_share: float | None = None,
    encoding: str | None = None,
    skip_bad: bool = False,
    progress: Progress = lambda what, done, total: None,
    say: Callable[[str], None] = lambda text: None,
) -> ImportReport:
    """Make dest a data set of the text in source (a folder, searched whole, or one file); replaces what dest held.

    column, encoding, skip_bad: see Reading. val: a folder or file with the validation text, which is never trained on,
    even if it lies in source or repeats in it; without it a share of source's text is held out. A txt or md file is one
    document. say: told if another process works in dest, which is waited for.

    Raises UsageError for arguments that contradict each other, MissingError if a path is not there, DataError if there
    is no text that can be used, with the name and line of a file that cannot be read, and CapacityError if the disk is
    full. If anything is raised, Ctrl-C included, dest is what it was.
    """
    _check_arguments(source, dest, val, val_share, encoding)
    report = ImportReport()
    try:
        val_files = find_files(val, report) if val else []
        files = find_files(source, report, apart_from=val_files)
        sizes = {path: (path.stat().st_size, measure_text(path, column)) for path in (*files, *val_files)}
    except OSError as error:
        raise name_read_error(error, source) from error
    existed = dest.exists()
    with disk_errors(dest, "--home DIR"), lock_folder(dest, say):
        work, before = dest / WORK, set(dest.glob("shard_*.parquet"))
        try:
            shutil.rmtree(work, ignore_errors=True)  # what a killed import left
            for path in dest.glob(".*.tmp"):  # the same, of replace_file
                path.unlink()
            work.mkdir()
            reading = Reading(column, encoding, skip_bad)
            importing = _Import(dest, work, seed, val_share, sizes, reading, report, progress)
            report.manifest = Manifest(tuple(importing.write(files, val_files)))
        except BaseException:
            for path in set(dest.glob("shard_*.parquet")) - before:
                path.unlink()
            raise
        else:
            replace_manifest(dest, report.manifest)
        finally:
            shutil.rmtree(work, ignore_errors=True)
            (dest / LOCK).unlink(missing_ok=True)
            if not existed and not any(dest.iterdir()):
                dest.rmdir()
    return report


def find_files(source: Path, report: ImportReport, apart_from: Sequence[Path] = ()) -> list[Path]:
    """The files with text, in a fixed order, each once; adds to the report what is left out, and why.

    Links to folders and files are followed. Raises MissingError if there is no such path, DataError if it has no text.
    """
    excluded = {_identify(path) for path in apart_from}
    if source.is_file():
        if source.suffix.lower() not in SUFFIXES:
            raise DataError(f"{source} is none of {', '.join(SUFFIXES)}", f"file {shlex.quote(str(source))}")
        if _identify(source) in excluded:
            raise UsageError(f"{source} is both the training and the validation text", "--val OTHER")
        report.num_files += 1
        return [source]
    if source.exists() and not source.is_dir():
        raise DataError(f"{source} is neither a folder nor a file", f"ls -ld {shlex.quote(str(source))}")
    if not source.is_dir():
        raise MissingError(f"there is no folder or file {source}", f"ls {shlex.quote(str(source.absolute().parent))}")
    found, seen, other = [], set(excluded), Counter[str]()
    for path in _walk(source, report.left_out):
        if not path.is_file():
            is_link = path.is_symlink() and not path.exists()
            report.left_out["links to nothing" if is_link else "devices, pipes and sockets"] += 1
        elif path.suffix.lower() not in SUFFIXES:
            other[path.suffix.lower() or "no ending"] += 1
        elif (identity := _identify(path)) in seen:
            report.left_out["files that are read under another name"] += identity not in excluded
        else:
            seen.add(identity)
            found.append(path)
    if other:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in other.most_common(5))
        more = ", ..." if len(other) > 5 else ""
        report.left_out[f"files of other kinds ({kinds}{more})"] += sum(other.values())
    if not found:
        look = f"ls -la {shlex.quote(str(source))}"
        if excluded & {_identify(path) for path in _walk(source, Counter()) if path.is_file()}:
            raise UsageError(f"every file of {source} is validation text: nothing is left to train on", "--val OTHER")
        left_out = "; ".join(f"{count:,} {reason}" for reason, count in report.left_out.items())
        have = f"left out: {left_out}" if left_out else "it is empty"
        raise DataError(f"{source} has no {', '.join(SUFFIXES)} file: {have}", look)
    report.num_files += len(found)
    return found


def _walk(source: Path, left_out: Counter[str]) -> Iterator[Path]:
    """Paths of a folder that are no folders, sorted; linked folders are followed, each once; hidden ones left out."""

    def fail(error: OSError) -> None:
        raise error

    visited = {_identify(source)}
    for folder, subfolders, files in os.walk(source, onerror=fail, followlinks=True):
        hidden = [name for name in (*subfolders, *files) if name.startswith(".")]
        left_out["hidden files and folders"] += len(hidden)
        kept = []
        for name in sorted(set(subfolders) - set(hidden)):
            if (identity := _identify(Path(folder, name))) in visited:
                left_out["folders that are read under another name"] += 1
                continue
            visited.add(identity)
            kept.append(name)
        subfolders[:] = kept
        yield from (Path(folder, name) for name in sorted(set(files) - set(hidden)))
    left_out += Counter()  # without the counts that are zero


def _identify(path: Path) -> tuple[int, int]:
    about = path.stat()
    return about.st_dev, about.st_ino


def _check_arguments(source: Path, dest: Path, val: Path | None, val_share: float | None, encoding: str | None) -> None:
    if val_share is not None and not 0 < val_share < 1:
        raise UsageError(f"--val-share {val_share} is not between 0 and 1", "--val-share 0.05")
    if val is not None and val_share is not None:
        raise UsageError("--val and --val-share are two ways to choose the validation text", "--val-share 0.05")
    try:
        "".encode(encoding or "utf-8")
    except (LookupError, UnicodeError):  # "undefined" is one that refuses everything
        raise UsageError(f"there is no encoding {encoding!r}", "--encoding latin-1") from None
    for path in (source, val):
        if path and (dest.resolve() == path.resolve() or path.resolve() in dest.resolve().parents):
            raise UsageError(f"the data set {dest} would be inside its own source {path}", "--home DIR")


@dataclass
class _Import:
    """The state of one import. sizes: bytes of each file, and of its text."""

    dest: Path
    work: Path
    seed: int
    val_share: float | None
    sizes: dict[Path, tuple[int, int]]
    reading: Reading
    report: ImportReport
    progress: Progress
    repeated: int = 0

    def write(self, files: list[Path], val_files: list[Path]) -> list[Shard]:
        """Write all shards, without the manifest."""
        val_path, digests = self.work / "val", set[bytes]()
        if val_files:
            self._write_val(val_files, val_path, digests)
        shards = self._write_split(self._iter_train(files, val_path, digests), "train")
        report, reading = self.report, self.reading
        report.left_out += reading.left_out
        report.left_out["documents that repeat in the validation text"] += self.repeated
        report.left_out += Counter()  # without the counts that are zero
        report.num_cut, report.num_recoded = reading.num_cut, reading.num_recoded
        if not shards:
            what = "text that is not in the validation text" if self.repeated else "any text"
            raise DataError(f"none of the {len(files):,} files holds {what}", f"head {shlex.quote(str(files[0]))}")
        val = self._write_split(read_texts(val_path), "val") if val_path.is_file() else []
        if not val:
            raise DataError(
                f"{report.chars['train']:,} characters are too few to train on one part and validate on another",
                "--val PATH",
            )
        return shards + val

    def _write_val(self, files: list[Path], path: Path, digests: set[bytes]) -> None:
        num_bytes = sum(self.sizes[path][1] for path in files)
        with path.open("wb") as file:
            texts = self._read(files, "reading the validation text")
            for bucket in iter_buckets(texts, num_bytes, self.seed, self.work):
                for data in bucket:
                    digests.add(digest_text(data))
                    write_text(file, data)
        if not digests:
            raise DataError(f"none of the {len(files):,} validation files holds any text", "--val OTHER")

    def _iter_train(self, files: list[Path], val_path: Path, digests: set[bytes]) -> Iterator[bytes]:
        num_bytes, done = sum(self.sizes[path][1] for path in files), 0
        buckets = iter_buckets(self._read(files, "reading"), num_bytes, self.seed, self.work)
        for bucket in buckets:
            size = sum(map(len, bucket))
            if digests:
                train = [data for data in bucket if digest_text(data) not in digests]
                self.repeated += len(bucket) - len(train)
            else:
                parts = hold_out(bucket, plan_val_bytes(size, self.val_share, min(1.0, size / max(1, num_bytes))))
                train = parts.train
                self.repeated += parts.num_repeated
                self.report.num_stretches += parts.num_cut
                with val_path.open("ab") as file:
                    for data in parts.val:
                        write_text(file, data)
            yield from train
            done += size
            if done > size:  # more than one bucket
                self.progress("writing", min(done, num_bytes), num_bytes)

    def _read(self, files: list[Path], what: str) -> Iterator[str]:
        total, before, done, told = sum(self.sizes[path][0] for path in files), 0, 0, 0

        def advance(num_bytes: int) -> None:
            nonlocal done, told
            done += num_bytes
            if done - told >= PROGRESS_BYTES or done >= total:
                self.progress(what, min(done, total), total)
                told = done

        self.reading.advance = advance
        for path in files:
            yield from iter_file(path, self.reading)
            before += self.sizes[path][0]
            advance(before - done)

    def _write_split(self, texts: Iterator[bytes], split: Split) -> list[Shard]:
        def count() -> Iterator[str]:
            for data in texts:
                text = data.decode()
                if text.strip():
                    self.report.documents[split] += 1
                    self.report.chars[split] += len(text)
                    yield text

        return write_shard_files(self.dest, count(), split)
