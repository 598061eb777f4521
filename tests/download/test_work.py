"""Jobs in threads, and what ends them."""

import threading

import pytest

from nanochat.download.faults import Patience
from nanochat.download.transfer import Progress, Transfer
from nanochat.download.work import Face, Job, run_jobs


def test_ctrl_c_before_all_threads_are_started_is_no_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was never started cannot be joined."""
    start, started = threading.Thread.start, []

    def start_one(thread: threading.Thread) -> None:
        if started:
            raise KeyboardInterrupt
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_one)
    progress = Progress()
    transfer = Transfer(None, Patience(), threading.Event(), progress)
    jobs = [Job("place", str(number), lambda _transfer: None) for number in range(3)]
    with pytest.raises(KeyboardInterrupt):
        run_jobs(jobs, transfer, progress, Face())
    started[0].join()
