"""Answers and other things that take a while, in threads that talk to the screen by messages only."""

import time
from collections.abc import Callable, Iterator

from textual import work
from textual.app import App
from textual.message import Message

from nanochat.chat.decoding import Piece
from nanochat.errors import NanochatError
from nanochat.tui.commands import Outcome, explain


class ThreadApp(App[None]):
    """clock: seconds from anywhere. first_token: seconds from the question to the first piece of the last answer."""

    clock: Callable[[], float] = staticmethod(time.monotonic)
    first_token = 0.0

    class Arrived(Message):
        """A piece of the running answer."""

        def __init__(self, piece: Piece) -> None:
            super().__init__()
            self.piece = piece

    class Ended(Message):
        """The running answer is over; error is "" or what went wrong."""

        def __init__(self, error: str) -> None:
            super().__init__()
            self.error = error

    class Done(Message):
        """What took a while is done."""

        def __init__(self, outcome: Outcome | None, error: str) -> None:
            super().__init__()
            self.outcome, self.error = outcome, error

    @work(thread=True, exit_on_error=False)
    def run_answer(self, pieces: Iterator[Piece]) -> None:
        """Send an answer's pieces as they come, then Ended."""
        started, error = self.clock(), ""
        self.first_token = 0.0
        try:
            for piece in pieces:
                self.first_token = self.first_token or self.clock() - started
                self.post_message(self.Arrived(piece))
        except NanochatError as refused:
            error = explain(refused)
        except Exception as bug:  # a worker's error must reach the screen, not end the app
            error = f"{type(bug).__name__}: {bug}"
        self.post_message(self.Ended(error))

    @work(thread=True, exit_on_error=False)
    def run_work(self, work: Callable[[], Outcome]) -> None:
        """Do what takes a while, then send Done."""
        outcome, error = None, ""
        try:
            outcome = work()
        except NanochatError as refused:
            error = explain(refused)
        except Exception as bug:
            error = f"{type(bug).__name__}: {bug}"
        self.post_message(self.Done(outcome, error))
