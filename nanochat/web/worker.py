"""Engines in threads of their own: requests come from the event loop, and their tokens go back to it.

The event loop never computes. An engine that fails is replaced, and whoever waited for it is told.
"""

import asyncio
import itertools
import queue
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from nanochat.engine.engine import Engine, Request, TokenEvent
from nanochat.engine.sampling import SamplingParams


class BusyError(Exception):
    """As many requests wait as may wait."""


class EngineFailedError(Exception):
    """The engine broke in the middle of an answer; the message says why."""


@dataclass(frozen=True)
class _Add:
    request: Request


@dataclass(frozen=True)
class _Cancel:
    request_id: int | str


class Stream:
    """The events of one request, to be read by one task. `cancel` may be called at any time, also twice."""

    def __init__(self, worker: "EngineWorker", request_id: int) -> None:
        self._worker, self._request_id = worker, request_id
        self._events: asyncio.Queue[TokenEvent | Exception] = asyncio.Queue()
        self._is_over = False

    async def __aiter__(self) -> AsyncIterator[TokenEvent]:
        while not self._is_over:
            event = await self._events.get()
            if isinstance(event, Exception):
                self._is_over = True
                raise event
            self._is_over = event.finish is not None
            yield event

    def cancel(self) -> None:
        """Free the slot before the engine's next step; the last event says "cancelled" where it came in time."""
        self._worker.cancel(self._request_id)

    def deliver(self, event: TokenEvent | Exception) -> None:
        """Called in the event loop."""
        self._events.put_nowait(event)


class EngineWorker:
    """One engine in one thread. make_engine: called in that thread, at the start and after a failure.

    max_waiting: requests beyond the engine's slots before `submit` raises BusyError.
    """

    def __init__(self, make_engine: Callable[[], Engine], max_waiting: int) -> None:
        self._make_engine, self._max_waiting = make_engine, max_waiting
        self._inbox: queue.SimpleQueue[_Add | _Cancel | None] = queue.SimpleQueue()
        self._streams: dict[int | str, Stream] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._numbers = itertools.count()
        self._num_slots = 0
        self.num_tokens = 0
        """Tokens of all answers so far."""
        self.num_failures = 0
        self.broken = ""
        """Why there is no engine any more; "" while there is one."""

    async def start(self) -> None:
        """Make the engine, and raise what went wrong with it."""
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[int] = self._loop.create_future()
        self._thread.start()
        self._num_slots = await self._ready

    @property
    def num_active(self) -> int:
        """Requests that are not finished."""
        return len(self._streams)

    @property
    def num_waiting(self) -> int:
        """Those of them for which no slot is free."""
        return max(0, self.num_active - self._num_slots)

    @property
    def capacity(self) -> int:
        """Requests that it takes at a time."""
        return self._num_slots + self._max_waiting

    @property
    def is_full(self) -> bool:
        return self.num_active >= self.capacity

    def submit(self, prompt: Sequence[int], params: SamplingParams) -> Stream:
        """Called in the event loop, as is all but the engine's own work.

        Raises BusyError, and EngineFailedError where the engine could not be made again.
        """
        if self.broken:
            raise EngineFailedError(self.broken)
        if self.is_full:
            raise BusyError(f"{self.num_active} requests are being answered or wait")
        number = next(self._numbers)
        self._streams[number] = stream = Stream(self, number)
        self._inbox.put(_Add(Request(number, prompt, params)))
        return stream

    def cancel(self, request_id: int | str) -> None:
        if request_id in self._streams:
            self._inbox.put(_Cancel(request_id))

    def cancel_all(self) -> None:
        for request_id in list(self._streams):
            self.cancel(request_id)

    async def stop(self) -> None:
        """End the thread; whoever still waits gets "cancelled"."""
        self.cancel_all()
        self._inbox.put(None)
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        assert self._loop is not None
        try:
            engine = self._make_engine()
        except BaseException as error:  # whoever started it is to say so
            self._loop.call_soon_threadsafe(self._ready.set_exception, error)
            return
        self._loop.call_soon_threadsafe(self._ready.set_result, engine.num_slots)
        is_open = True
        while is_open or engine.num_active:
            try:
                is_open = self._take(engine) and is_open
                events = engine.step()
            except Exception as error:
                self._loop.call_soon_threadsafe(self._fail, f"{type(error).__name__}: {error}")
                del engine  # its cache makes room for the next one's
                try:
                    engine = self._make_engine()
                except Exception as second:
                    self._loop.call_soon_threadsafe(self._fail, f"{type(second).__name__}: {second}", True)
                    return
                continue
            if events:
                self._loop.call_soon_threadsafe(self._deliver, events)

    def _take(self, engine: Engine) -> bool:
        """Do all that was asked for, waiting where there is nothing else to do; False once the end was asked for."""
        is_idle = engine.num_active == 0
        while True:
            try:
                command = self._inbox.get(block=is_idle)
            except queue.Empty:
                return True
            is_idle = False
            if command is None:
                return False
            if isinstance(command, _Add):
                engine.add(command.request)
            else:
                engine.cancel(command.request_id)

    def _deliver(self, events: Sequence[TokenEvent]) -> None:
        for event in events:
            self.num_tokens += event.token is not None
            stream = self._streams.get(event.request_id)
            if stream is not None:
                stream.deliver(event)
                if event.finish is not None:
                    del self._streams[event.request_id]

    def _fail(self, reason: str, for_good: bool = False) -> None:
        self.num_failures += 1
        self.broken = reason if for_good else self.broken
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.deliver(EngineFailedError(reason))


class Pool:
    """Several workers, one a device; a request goes to the one with the fewest."""

    def __init__(self, workers: Sequence[EngineWorker]) -> None:
        self.workers = tuple(workers)

    async def start(self) -> None:
        await asyncio.gather(*(worker.start() for worker in self.workers))

    async def stop(self) -> None:
        await asyncio.gather(*(worker.stop() for worker in self.workers))

    @property
    def num_active(self) -> int:
        return sum(worker.num_active for worker in self.workers)

    @property
    def num_waiting(self) -> int:
        return sum(worker.num_waiting for worker in self.workers)

    @property
    def capacity(self) -> int:
        return sum(worker.capacity for worker in self.workers)

    @property
    def num_tokens(self) -> int:
        return sum(worker.num_tokens for worker in self.workers)

    @property
    def num_failures(self) -> int:
        return sum(worker.num_failures for worker in self.workers)

    def submit(self, prompt: Sequence[int], params: SamplingParams) -> Stream:
        """Raises BusyError where every worker is full, and EngineFailedError where none has an engine."""
        return min(self.workers, key=lambda worker: (bool(worker.broken), worker.num_active)).submit(prompt, params)

    @property
    def is_broken(self) -> bool:
        return all(worker.broken for worker in self.workers)

    def cancel_all(self) -> None:
        for worker in self.workers:
            worker.cancel_all()
