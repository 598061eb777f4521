"""A hub of ours with small data sets, and a client that tries again soon."""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nanochat.download.faults import Patience
from nanochat.download.fetch import Face, Fetcher, Order
from nanochat.download.hub import Hub
from tests.hub_server import HubServer, serve
from tests.patience import PATIENCE_SECONDS

SIZES = {"data/train-00000.parquet": 300_000, "data/train-00001.parquet": 70_001, "data/test-00000.parquet": 5}
PATIENT = Patience(first_wait_seconds=0.001, longest_wait_seconds=2, slow_seconds=PATIENCE_SECONDS)
IMPATIENT = replace(PATIENT, slow_bytes=1_000, slow_seconds=0.5)


def make_body(path: str, size: int) -> bytes:
    return random.Random(path).randbytes(size)


@pytest.fixture
def server() -> Iterator[HubServer]:
    with serve() as server:
        for path, size in SIZES.items():
            server.add("them/texts", path, make_body(path, size))
        server.add("them/texts", "README.md", b"hello", is_large=False)
        yield server


@pytest.fixture
def order(tmp_path: Path) -> Order:
    return Order("them/texts", tmp_path / "texts", ("data/*.parquet",))


@pytest.fixture
def new_fetcher(server: HubServer) -> Callable[..., Fetcher]:
    """A fetcher of the server; `said` collects what it says. is_patient: waits for a server that sends nothing."""

    def make(said: list[str] | None = None, offline: bool = False, is_patient: bool = True, **options) -> Fetcher:
        face = Face(said.append) if said is not None else Face()
        hub = None if offline else lambda: Hub(server.url, PATIENCE_SECONDS if is_patient else 1.0)
        patience = options.pop("patience", PATIENT if is_patient else IMPATIENT)
        return Fetcher(hub, face, patience, again="nanochat download tasks", **options)

    return make


def check_files(order: Order, paths: list[str] | None = None) -> None:
    """Exactly these files are there, right, and nothing half-done beside them."""
    names = sorted(path.relative_to(order.folder).as_posix() for path in order.folder.rglob("*") if path.is_file())
    assert names == sorted([*(paths or SIZES), ".lock", "source.json"])
    for path in paths or SIZES:
        assert (order.folder / path).read_bytes() == make_body(path, SIZES[path]), path
