"""One line for all downloads: rewritten on a terminal, a new one now and then elsewhere."""

import sys
import time

from nanochat.cli.console import Console
from nanochat.download.work import Progress
from nanochat.text import can_rewrite, format_seconds, format_size

SECONDS_BETWEEN_LINES = 5.0
SECONDS_BETWEEN_FRAMES = 0.2
WINDOW_SECONDS = 10.0
"""What the speed is measured over."""


class ProgressLine:
    """Use as a context manager. say: news, which the line makes way for."""

    def __init__(self, console: Console, live: bool | None = None) -> None:
        self.console = console
        self.live = can_rewrite(sys.stderr) if live is None else live
        self._drawn, self._last, self._marks = "", 0.0, [(time.monotonic(), 0)]

    def __enter__(self) -> "ProgressLine":
        return self

    def __exit__(self, *_: object) -> None:
        if self._drawn and self.live:
            self.console.rewrite("")
        self._drawn = ""

    def say(self, text: str) -> None:
        if self._drawn and self.live:
            self.console.rewrite("")
        self.console.say(text)

    def show(self, progress: Progress) -> None:
        """Draw where it stands, when it is time."""
        now = time.monotonic()
        self._marks.append((now, progress.fetched_bytes))
        while now - self._marks[0][0] > WINDOW_SECONDS and len(self._marks) > 2:
            self._marks.pop(0)
        speed = (self._marks[-1][1] - self._marks[0][1]) / max(1e-9, now - self._marks[0][0])
        self.draw(describe_progress(progress, speed), is_last=progress.files == progress.total_files)

    def draw(self, text: str, is_last: bool = False) -> None:
        """Show a text when it is time, and in any case when it is the last."""
        pause = SECONDS_BETWEEN_FRAMES if self.live else SECONDS_BETWEEN_LINES
        if text == self._drawn or (time.monotonic() - self._last < pause and not is_last):
            return
        self._last, self._drawn = time.monotonic(), text
        if self.live:
            self.console.rewrite(text)
        else:
            self.console.say(text)

    def show_bytes(self, name: str, done: int, total: int) -> None:
        share = f" ({100 * done / total:.0f}%)" if total else ""
        self.draw(f"{name}: {format_size(done)} of {format_size(total)}{share}", done >= total)


def describe_progress(progress: Progress, bytes_per_second: float) -> str:
    """
    >>> describe_progress(Progress(3, 8, 40_000_000, 100_000_000), 2e6)
    'downloading: 3 of 8 files, 40 MB of 100 MB (40%), 2.0 MB/s, 0:30 left'
    """
    done = max(0, min(progress.bytes, progress.total_bytes))
    parts = [f"downloading: {progress.files:,} of {progress.total_files:,} files"]
    if progress.total_bytes:
        share = 100 * done / progress.total_bytes
        parts.append(f"{format_size(done)} of {format_size(progress.total_bytes)} ({share:.0f}%)")
    if bytes_per_second > 0 and done < progress.total_bytes:
        left = format_seconds((progress.total_bytes - done) / bytes_per_second)
        parts += [f"{bytes_per_second / 1e6:,.1f} MB/s", f"{left} left"]
    if tried_again := sum(progress.problems.values()):
        parts.append(f"{tried_again:,} tried again")
    return ", ".join(parts)
