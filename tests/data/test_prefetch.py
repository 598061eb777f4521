import gc
import time
from collections.abc import Iterator

import pytest

from nanochat.data.prefetch import Prefetcher
from tests.patience import PATIENCE_SECONDS, wait_until


def test_items_come_in_order_and_the_end_stays_the_end() -> None:
    items = Prefetcher(iter(range(100)), 3)
    assert list(items) == list(range(100))
    assert list(items) == []


def test_no_more_than_the_depth_is_made_ahead() -> None:
    made = []

    def count() -> Iterator[int]:
        for index in range(100):
            made.append(index)
            yield index

    items = Prefetcher(count(), 3)
    assert next(items) == 0
    most = 1 + 3 + 1  # taken, waiting, in hand
    wait_until(lambda: len(made) >= most)
    time.sleep(0.05)
    assert len(made) == most
    items.close()


def test_an_error_arrives_where_its_item_would_and_again() -> None:
    def fail() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    items = Prefetcher(fail(), 3)
    assert next(items) == 1
    for _ in range(2):
        with pytest.raises(ValueError, match="broken"):
            next(items)


def test_close_ends_the_thread_and_the_iteration() -> None:
    items = Prefetcher(iter(int, 1), 2)
    next(items)
    items.close()
    assert not items._thread.is_alive()
    assert list(items) == []


def test_an_abandoned_iterator_ends_its_thread() -> None:
    items = Prefetcher(iter(int, 1), 2)
    next(items)
    thread = items._thread
    del items
    gc.collect()
    thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive()
