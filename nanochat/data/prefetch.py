"""An iterator that works ahead in a thread: bounded, stoppable, and its errors reach the consumer."""

import queue
import threading
import weakref
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

POLL_SECONDS = 0.1


class Prefetcher(Generic[T]):
    """Items of another iterator, up to `depth` of them made ahead.

    An error of the iterator is raised where the item would have come. `close` (also at garbage collection) stops the
    thread after the item at hand.
    """

    def __init__(self, iterator: Iterator[T], depth: int) -> None:
        self._queue: queue.Queue = queue.Queue(maxsize=max(1, depth))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=_work, args=(iterator, self._queue, self._stop), daemon=True)
        self._thread.start()
        self._ended: BaseException | None = None
        # The thread holds no reference to this object, so an abandoned loader ends its thread.
        weakref.finalize(self, self._stop.set)

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._ended is not None:
            raise self._ended
        while not self._stop.is_set():
            try:
                item, error = self._queue.get(timeout=POLL_SECONDS)
            except queue.Empty:
                continue
            if error is not None:
                self._ended = error
                raise error
            return item
        raise StopIteration

    def close(self) -> None:
        """Stop the thread and wait for it; what was made ahead is thrown away."""
        self._stop.set()
        self._thread.join()


def _work(iterator: Iterator, items: queue.Queue, stop: threading.Event) -> None:
    try:
        while True:
            try:
                entry = (next(iterator), None)
            except BaseException as error:  # StopIteration too: the consumer's loop ends by it
                entry = (None, error)
            while not stop.is_set():
                try:
                    items.put(entry, timeout=POLL_SECONDS)
                    break
                except queue.Full:
                    continue
            if stop.is_set() or entry[1] is not None:
                return
    finally:
        close = getattr(iterator, "close", None)
        if close is not None:
            close()
