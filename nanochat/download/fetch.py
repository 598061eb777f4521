"""Orders for files of several data sets, filled together: locked, listed, measured, fetched in parallel, recorded.

Source of the rules: an order that was interrupted or met a bad server leaves nothing wrong, and the same command again
fetches what is missing and nothing else.
"""

import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from nanochat.disk import check_space
from nanochat.download.faults import Patience, StoppedFetchError, persist
from nanochat.download.hub import Hub, Listing
from nanochat.download.lock import lock_folder
from nanochat.download.record import Record, build_record, load_record, save_record
from nanochat.download.transfer import Remote, Transfer, is_right_file, part_path, size_of
from nanochat.errors import CapacityError, DataError, NanochatError

NUM_THREADS = 4
"""Files at once: enough to fill a line whose servers limit each connection, few enough to be welcome."""
MAX_FAILURES = 3
"""Files in a row that cannot be had before the rest is not tried: the line is down, not a file missing."""
POLL_SECONDS = 0.2
NAMED = 8
"""Files that a message names; the rest it counts."""


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


@dataclass
class Progress:
    """How far all orders are together, in files and bytes. problems: what went wrong and was tried again, counted."""

    files: int = 0
    total_files: int = 0
    bytes: int = 0
    total_bytes: int = 0
    fetched_bytes: int = 0
    problems: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def move(self, change: int) -> None:
        with self.lock:
            self.bytes += change
            self.fetched_bytes += max(0, change)

    def note(self, reason: str) -> None:
        with self.lock:
            self.problems[reason] += 1


@dataclass(frozen=True)
class Face:
    """What is said while it goes on. show: is called with the progress again and again, from one thread."""

    say: Callable[[str], None] = lambda text: None
    show: Callable[[Progress], None] = lambda progress: None


@dataclass(frozen=True)
class Missing:
    """A file that an order wants and that is not here, with the reason where it was tried."""

    order: Order
    path: str
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.order.repo}: {self.path}" + (f": {self.reason}" if self.reason else "")


@dataclass
class _Job:
    order: Order
    path: str


def matches(path: str, pattern: str) -> bool:
    """Whether a path is meant by a pattern, whose stars never cross a folder.

    >>> matches("main/test-0.parquet", "main/test-*"), matches("main/a/test-0", "main/*")
    (True, False)
    """
    return path.count("/") == pattern.count("/") and fnmatchcase(path, pattern)


class Fetcher:
    """Fills orders. hub: makes the client, only when a socket is needed; None: offline. again: the command to go on.

    update: ask anew which commit the revision stands for, instead of the one that was written down first.
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
    ) -> None:
        self.make_hub, self.face, self.patience = hub, face or Face(), patience or Patience()
        self.again, self.update, self.num_threads = again, update, num_threads
        self.progress = Progress()
        self.stop = threading.Event()
        self._records: dict[Path, Record] = {}
        self._lock = threading.Lock()

    def fetch(self, orders: Sequence[Order]) -> dict[Path, Record]:
        """Fill the orders; return the record of each folder. What is here and right is not fetched again.

        Raises DataError with the list of what is missing, which is said line by line before; CapacityError where the
        disk has no room for all of it, before anything is fetched.
        """
        with self._locked(orders):
            missing = self._list(orders)
            jobs = [] if missing else self._find_jobs(orders)
            if jobs and self.make_hub is None:
                missing = [Missing(job.order, job.path) for job in jobs]
            elif jobs:
                self._check_space(jobs)
                missing = self._run(jobs)
            if missing:
                raise self._explain(missing)
            return dict(self._records)

    @contextmanager
    def _locked(self, orders: Sequence[Order]) -> Iterator[None]:
        with ExitStack() as stack:
            for folder in sorted({order.folder for order in orders}):
                stack.enter_context(lock_folder(folder, self.face.say))
            yield

    def _list(self, orders: Sequence[Order]) -> list[Missing]:
        """Read the records, and make those that are not there yet."""
        missing = []
        for folder in dict.fromkeys(order.folder for order in orders):
            order = next(order for order in orders if order.folder == folder)
            record = load_record(folder)
            if record is not None and record.repo != order.repo:
                raise DataError(f"{folder} holds {record.repo}, not {order.repo}", f"mv {folder} {folder}-before")
            if record is None or (self.update and self.make_hub is not None):
                if self.make_hub is None:
                    missing += [Missing(item, " and ".join(item.patterns)) for item in orders if item.folder == folder]
                    continue
                record = self._read_listing(order, record)
                save_record(folder, record)
            self._records[folder] = record
        return missing

    def _read_listing(self, order: Order, before: Record | None) -> Record:
        assert self.make_hub is not None
        hub = self.make_hub()
        try:
            listing = persist(
                lambda: hub.read_listing(order.repo, order.revision, self.patience),
                *(self.patience, self.stop, self.progress.note),
            )
        except DataError as error:
            where = f"{order.repo} cannot be listed at {hub.endpoint}: {error.message}"
            raise DataError(where, error.hint or self.again) from error
        parquet = {path: file for path, file in listing.files.items() if path.endswith(".parquet")}
        self.face.say(f"{order.repo} is at commit {listing.commit[:12]}, {len(parquet):,} files")
        return build_record(order.repo, Listing(listing.commit, parquet), before)

    def _find_jobs(self, orders: Sequence[Order]) -> list[_Job]:
        """What is not here. A file that is here and not yet recorded, as after a kill, is read and recorded."""
        jobs: dict[Path, _Job] = {}
        for order in orders:
            record = self._records[order.folder]
            chosen = order.choose(list(record.files))
            for pattern in order.patterns:
                if not any(matches(path, pattern) for path in record.files):
                    where = f"{order.repo} at commit {record.commit[:12]}"
                    raise DataError(f"{where} has no file {pattern}", "nanochat download all --update --for PRESET")
            if order.num_files is not None and len(chosen) < order.num_files:
                self.face.say(f"{order.repo} has {len(chosen):,} files; {order.num_files:,} were wanted, all are taken")
            for path in chosen:
                target, entry = order.folder / path, record.files[path]
                if target in jobs:
                    continue
                self.progress.total_files += 1
                self.progress.total_bytes += entry.size
                is_here = entry.is_here and size_of(target) == entry.size and target.is_file()
                if not is_here and target.is_file() and is_right_file(target, entry.content):
                    self._mark(order.folder, path, True)
                    is_here = True
                if is_here:
                    self.progress.files += 1
                    self.progress.bytes += entry.size
                else:
                    jobs[target] = _Job(order, path)
                    self.progress.bytes += min(entry.size, size_of(part_path(target, entry.content)))
        return list(jobs.values())

    def _check_space(self, jobs: Sequence[_Job]) -> None:
        needed = self.progress.total_bytes - self.progress.bytes
        check_space(jobs[0].order.folder, needed, f"downloading {len(jobs):,} files")

    def _run(self, jobs: Sequence[_Job]) -> list[Missing]:
        """Fetch with several threads, which end with the process; returns what could not be had."""
        assert self.make_hub is not None
        hub = self.make_hub()
        waiting: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        done: queue.SimpleQueue[tuple[_Job, BaseException | None]] = queue.SimpleQueue()
        transfer = Transfer(hub, self.patience, self.stop, self.progress.move, self.progress.note)
        for job in jobs:
            waiting.put(job)
        threads = [
            threading.Thread(target=self._work, args=(transfer, waiting, done), daemon=True)
            for _ in range(min(self.num_threads, len(jobs)))
        ]
        for _ in threads:
            waiting.put(None)
        try:
            for thread in threads:
                thread.start()
            return self._watch(jobs, done)
        finally:
            self.stop.set()
            for thread in threads:
                thread.join(timeout=1.0)  # one that hangs in a read ends with the process; its part is good

    def _watch(
        self, jobs: Sequence[_Job], done: "queue.SimpleQueue[tuple[_Job, BaseException | None]]"
    ) -> list[Missing]:
        missing, open_jobs, in_a_row = [], {id(job): job for job in jobs}, 0
        while open_jobs:
            self.face.show(self.progress)
            try:
                job, error = done.get(timeout=POLL_SECONDS)
            except queue.Empty:
                continue
            if isinstance(error, StoppedFetchError):
                continue  # it is among those that nobody tried
            del open_jobs[id(job)]
            if error is None:
                in_a_row = 0
                self.progress.files += 1
            elif isinstance(error, CapacityError) or not isinstance(error, NanochatError):
                raise error
            else:
                in_a_row += 1
                missing.append(Missing(job.order, job.path, error.message))
                if in_a_row == MAX_FAILURES and open_jobs:
                    self.face.say(f"{in_a_row} files in a row failed: the rest is not tried")
                    break
        self.face.show(self.progress)
        return missing + [Missing(job.order, job.path) for job in open_jobs.values()]

    def _work(
        self,
        transfer: Transfer,
        waiting: "queue.SimpleQueue[_Job | None]",
        done: "queue.SimpleQueue[tuple[_Job, BaseException | None]]",
    ) -> None:
        while (job := waiting.get()) is not None:
            record = self._records[job.order.folder]
            remote = Remote(
                transfer.hub.file_url(job.order.repo, record.commit, job.path), record.files[job.path].content
            )
            try:
                sha256 = transfer.fetch(remote, job.order.folder / job.path)
                self._mark(job.order.folder, job.path, True, sha256)
            except BaseException as error:  # noqa: B036 - the watching thread raises it
                done.put((job, error))
            else:
                done.put((job, None))

    def _mark(self, folder: Path, path: str, is_here: bool, sha256: str | None = None) -> None:
        with self._lock:
            changes = {"is_here": is_here} | ({"sha256": sha256} if sha256 else {})
            self._records[folder] = self._records[folder].with_file(path, **changes)
            save_record(folder, self._records[folder])

    def _explain(self, missing: Sequence[Missing]) -> DataError:
        for item in missing[:100]:
            self.face.say(f"missing: {item}")
        if len(missing) > 100:
            self.face.say(f"missing: {len(missing) - 100:,} more")
        named = ", ".join(Path(item.path).name for item in missing[:NAMED])
        more = f" and {len(missing) - NAMED:,} more" if len(missing) > NAMED else ""
        offline = " (offline)" if self.make_hub is None else ""
        reason = next((f": {item.reason}" for item in missing if item.reason), "")
        files = "file is" if len(missing) == 1 else "files are"
        return DataError(f"{len(missing):,} {files} missing{offline}: {named}{more}{reason}", self.again)
