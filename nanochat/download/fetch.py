"""Orders for files of several data sets, filled together: locked, listed, measured, fetched in parallel, recorded.

An order that was interrupted or met a bad server leaves nothing wrong, and the same command again fetches what is
missing and nothing else.
"""

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from nanochat.download.bundle import Bundle, bring_bundle, find_bundle
from nanochat.download.faults import Patience, persist
from nanochat.download.hub import Hub, Listing
from nanochat.download.record import Record, build_record, load_record, save_record, sweep
from nanochat.download.transfer import Remote, Transfer, is_right_file, part_path, size_of
from nanochat.download.work import NUM_THREADS, Face, Job, Missing, Progress, run_jobs
from nanochat.errors import DataError
from nanochat.files import check_space, lock_folder

NAMED = 8
"""Files that a message names; the rest it counts."""
SAID = 100
"""Files that are said line by line."""


@dataclass(frozen=True)
class Order:
    """Files of a data set of the hub that are to lie in a folder.

    patterns: of paths in the data set; a star never crosses a folder. num_files: of those that match, sorted, the first
    num_files - 1 and the last, which is the validation shard of a text; None: all.
    """

    repo: str
    folder: Path
    patterns: tuple[str, ...]
    num_files: int | None = None
    revision: str = "main"

    def choose(self, paths: Sequence[str]) -> list[str]:
        """
        >>> Order("a/b", Path(), ("shard_*",), 3).choose(["README", "shard_0", "shard_1", "shard_2", "shard_3"])
        ['shard_0', 'shard_1', 'shard_3']
        """
        chosen = sorted(path for path in paths if any(matches(path, pattern) for pattern in self.patterns))
        if self.num_files is not None and len(chosen) > self.num_files:
            return [*chosen[: self.num_files - 1], chosen[-1]]
        return chosen


def matches(path: str, pattern: str) -> bool:
    """Whether a path is meant by a pattern, whose stars never cross a folder.

    >>> matches("main/test-0.parquet", "main/test-*"), matches("main/a/test-0", "main/*")
    (True, False)
    """
    return path == pattern or (path.count("/") == pattern.count("/") and fnmatchcase(path, pattern))


class Fetcher:
    """Fills orders. hub: makes the client, only when a socket is needed; None: offline. again: the command to go on.

    update: ask anew which commit the revision stands for, instead of the one that was written down first. finish: what
    is done with an order that is filled, while its folder is locked.
    """

    def __init__(
        self,
        hub: Callable[[], Hub] | None,
        face: Face | None = None,
        patience: Patience | None = None,
        *,
        again: str = "",
        update: bool = False,
        num_threads: int = NUM_THREADS,
        finish: Callable[[Order, Record], None] = lambda order, record: None,
    ) -> None:
        self.make_hub, self.face, self.patience = hub, face or Face(), patience or Patience()
        self.again, self.update, self.num_threads, self.finish = again, update, num_threads, finish
        self.progress = Progress()
        self.stop = threading.Event()
        self._records: dict[Path, Record] = {}
        self._lock = threading.Lock()

    def fetch(self, orders: Sequence[Order], bundles: Sequence[Bundle] = ()) -> dict[Path, Record]:
        """Fill the orders and unpack the bundles; return the record of each folder. What is here is not fetched again.

        Raises DataError with the list of what is missing, which is said line by line before; CapacityError where the
        disk has no room for all of it, before anything is fetched.
        """
        with ExitStack() as stack:
            for folder in sorted({item.folder for item in (*orders, *bundles)}):
                stack.enter_context(lock_folder(folder, self.face.say))
            missing = self._list(orders)
            jobs = self._find_jobs([order for order in orders if order.folder in self._records])
            if jobs:
                needed = self.progress.total_bytes - self.progress.bytes
                check_space(orders[0].folder, needed, f"downloading {len(jobs):,} files")
            jobs += self._find_bundles(bundles)
            if self.make_hub is None and any(not job.is_local for job in jobs):
                missing += [Missing(job.place, job.path) for job in jobs]
            elif jobs:
                missing = self._run(jobs)
            if missing:
                raise self._explain(missing)
            for order in orders:
                self.finish(order, self._records[order.folder])
            return dict(self._records)

    def _run(self, jobs: Sequence[Job]) -> list[Missing]:
        hub = self.make_hub() if self.make_hub is not None else None
        transfer = Transfer(hub, self.patience, self.stop, self.progress)
        return run_jobs(jobs, transfer, self.progress, self.face, self.num_threads)

    def _list(self, orders: Sequence[Order]) -> list[Missing]:
        """Read the records, and make those that are not there yet."""
        missing = []
        first = {order.folder: order for order in reversed(orders)}  # of several orders for one folder
        for order in [order for order in orders if order is first[order.folder]]:
            record = load_record(order.folder)
            if record is not None and record.repo != order.repo:
                raise DataError(
                    f"{order.folder} holds {record.repo}, not {order.repo}",
                    f"mv -n {order.folder} {order.folder}-before",
                )
            if record is None or (self.update and self.make_hub is not None):
                if self.make_hub is None:
                    same = [item for item in orders if item.folder == order.folder]
                    missing += [Missing(item.repo, pattern) for item in same for pattern in item.patterns]
                    continue
                record = self._read_listing(self.make_hub(), order, record)
                save_record(order.folder, record)
            sweep(order.folder, record)
            self._records[order.folder] = record
        return missing

    def _read_listing(self, hub: Hub, order: Order, before: Record | None) -> Record:
        def note(reason: str) -> None:
            self.progress.note(reason)
            self.face.say(f"{order.repo}: {reason}; trying again")

        try:
            listing = persist(
                lambda: hub.read_listing(order.repo, order.revision, self.patience),
                *(self.patience, self.stop, note),
            )
        except DataError as error:
            where = f"{order.repo} cannot be listed at {hub.endpoint}: {error.message}"
            raise DataError(where, error.hint or self.again) from error
        parquet = {path: file for path, file in listing.files.items() if path.endswith(".parquet")}
        self.face.say(f"{order.repo} is at commit {listing.commit[:12]}, {len(parquet):,} files")
        return build_record(order.repo, Listing(listing.commit, parquet), before)

    def _find_jobs(self, orders: Sequence[Order]) -> list[Job]:
        """What is not here. A file that is here and not yet recorded, as after a kill, is read and recorded."""
        jobs: dict[Path, Job] = {}
        seen: set[Path] = set()
        for order in orders:
            record = self._records[order.folder]
            chosen = order.choose(list(record.files))
            for pattern in order.patterns:
                if not any(matches(path, pattern) for path in record.files):
                    where = f"{order.repo} at commit {record.commit[:12]}"
                    raise DataError(f"{where} has no file {pattern}", f"{self.again} --update".strip())
            if order.num_files is not None and len(chosen) < order.num_files:
                self.face.say(f"{order.repo} has {len(chosen):,} files; {order.num_files:,} were wanted, all are taken")
            for path in chosen:
                target, entry = order.folder / path, record.files[path]
                if target in seen:
                    continue
                seen.add(target)
                self.progress.total_files += 1
                self.progress.total_bytes += entry.size
                is_here = entry.is_here and size_of(target) == entry.size and target.is_file()
                if not is_here and target.is_file() and is_right_file(target, entry.content):
                    self._mark(order.folder, path)
                    is_here = True
                if is_here:
                    self.progress.files += 1
                    self.progress.bytes += entry.size
                else:
                    jobs[target] = Job(order.repo, path, self._bring(order, path))
                    self.progress.bytes += min(entry.size, size_of(part_path(target, entry.content)))
        return list(jobs.values())

    def _bring(self, order: Order, path: str) -> Callable[[Transfer], None]:
        def run(transfer: Transfer) -> None:
            record = self._records[order.folder]
            url = transfer.open_hub().file_url(order.repo, record.commit, path)
            sha256 = transfer.fetch(Remote(url, record.files[path].content), order.folder / path)
            self._mark(order.folder, path, sha256)

        return run

    def _mark(self, folder: Path, path: str, sha256: str = "") -> None:
        with self._lock:
            entry = self._records[folder].files[path]
            entry = replace(entry, is_here=True, sha256=sha256 or entry.sha256)
            self._records[folder] = self._records[folder].with_file(path, entry)
            save_record(folder, self._records[folder])

    def _find_bundles(self, bundles: Sequence[Bundle]) -> list[Job]:
        jobs = []
        for bundle in bundles:
            self.progress.total_files += 1
            record = None if self.update else find_bundle(bundle, self.face.say)
            if record is not None:
                self._records[bundle.folder] = record
                self.progress.files += 1
            else:
                jobs.append(Job(bundle.folder.name, bundle.source, self._unpack(bundle), bundle.is_local))
        return jobs

    def _unpack(self, bundle: Bundle) -> Callable[[Transfer], None]:
        def run(transfer: Transfer) -> None:
            record = bring_bundle(bundle, transfer)
            with self._lock:
                self._records[bundle.folder] = record

        return run

    def _explain(self, missing: Sequence[Missing]) -> DataError:
        for item in missing[:SAID]:
            self.face.say(f"missing: {item}")
        if len(missing) > SAID:
            self.face.say(f"missing: {len(missing) - SAID:,} more")
        named = ", ".join(Path(item.path).name for item in missing[:NAMED])
        more = f" and {len(missing) - NAMED:,} more" if len(missing) > NAMED else ""
        offline = " (offline)" if self.make_hub is None else ""
        reason = next((f": {item.reason}" for item in missing if item.reason), "")
        files = "file is" if len(missing) == 1 else "files are"
        return DataError(f"{len(missing):,} {files} missing{offline}: {named}{more}{reason}", self.again)
