"""What a stage tells people, on stderr: a live bar on a terminal, plain lines otherwise, nothing on other ranks."""

import contextlib
import os
import sys
import time
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from nanochat.errors import NanochatError
from nanochat.text import can_rewrite, format_seconds, plain_text

SECONDS_BETWEEN_LINES = 2.0  # of plain progress: enough to see life, few enough for a log file


class Display(contextlib.AbstractContextManager):
    """What one stage says. Use as a context manager, so that the bar is taken down whatever happens.

    stream: where people read; default: standard error. log: gets every line too, also when quiet. A terminal that has
    gone and a log on a full disk cost their lines and nothing else.
    """

    def __init__(self, quiet: bool = False, stream: TextIO | None = None, log: TextIO | None = None) -> None:
        self.quiet = quiet
        self._stream, self._log = stream, log
        self._live = not quiet and can_rewrite(self.stream)
        self._progress: Progress | None = None
        self._warned = False
        self._name = ""
        self._started = self._first_done = self._last_line = self._last_done = 0.0

    def __exit__(self, *_error: object) -> None:
        self.finish()

    @property
    def stream(self) -> TextIO:
        return self._stream or sys.stderr

    def say(self, text: str) -> None:
        """One or more lines of news."""
        text = plain_text(text)
        self._keep(text)
        if self.quiet:
            return
        if self._progress is not None:
            with contextlib.suppress(OSError, ValueError):
                self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            _write(self.stream, text)

    def advance(self, name: str, done: float, total: float, detail: str = "") -> None:
        """Show that `done` of `total` of `name` are done; the first call of a name starts its clock and its bar."""
        if self.quiet and self._log is None:
            return
        now = time.monotonic()
        if name != self._name:
            self.finish()
            self._name, self._started, self._first_done = name, now, done
            self._last_line, self._last_done = 0.0, -1.0
            if self._live:
                self._progress = _build_progress(self.stream)
                self._progress.start()
                self._progress.add_task(name, total=total, detail="")
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], completed=done, total=total, detail=detail)
        if done != self._last_done and (now - self._last_line >= SECONDS_BETWEEN_LINES or done >= total):
            self._last_line, self._last_done = now, done
            share = f"{100 * done / total:.0f}%" if total else ""
            parts = [f"{name} {done:,.0f}/{total:,.0f} ({share})", detail]
            fresh = done - self._first_done
            if fresh > 0 and done < total:
                left = (now - self._started) * (total - done) / fresh
                parts.append(f"{format_seconds(left)} left" if left else "")
            line = plain_text("  ".join(part for part in parts if part))
            self._keep(line)
            if self._progress is None and not self.quiet:
                _write(self.stream, line)

    def finish(self) -> None:
        """Take the bar down."""
        if self._progress is not None:
            with contextlib.suppress(OSError, ValueError):
                self._progress.stop()
        self._progress, self._name = None, ""

    def show_step(self, stage: str, record: dict, num_steps: int) -> None:
        """One record of the training loop."""
        loss = "no targets" if record["loss"] is None else f"loss {record['loss']:.4f}"
        if record["loss"] is None and "reward" not in record and not self._warned:
            self._warned = True
            self.say(
                f"warning: step {record['step']} had nothing to learn from: no answer of its conversations is in "
                "the context; `nanochat data check FILE` counts them"
            )
        reward = [f"reward {record['reward']:.3f}"] if "reward" in record else []
        parts = [*reward, loss, f"lr x{record['lr']:.2f}", f"{record['tokens_per_second']:,.0f} tok/s"]
        if record["mfu"] is not None:
            parts.append(f"mfu {100 * record['mfu']:.1f}%")
        if record["skipped"]:
            parts.append(f"{record['skipped']} skipped")
        self.advance(stage, record["step"], num_steps, "  ".join(parts))

    def fail(self, error: NanochatError) -> None:
        """An error is shown even when quiet."""
        self.finish()
        text = f"error: {plain_text(error.message)}"
        if error.hint:
            text += f"\nhint:  {plain_text(error.hint)}"
        self._keep(text)
        _write(self.stream, text)

    def _keep(self, text: str) -> None:
        if self._log is not None:
            _write(self._log, text)


def _write(stream: TextIO, text: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        stream.write(text + "\n")
        stream.flush()


def _build_progress(stream: TextIO) -> Progress:
    width = None
    with contextlib.suppress(OSError, ValueError):  # the stream's own width: standard error may be a log
        width = os.get_terminal_size(stream.fileno()).columns or None
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
        TextColumn("{task.fields[detail]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(file=stream, width=width),
        transient=False,
    )
