"""A download that is killed, among bad answers, leaves nothing wrong and goes on."""

import sys
from pathlib import Path

import pytest

from benchmarks.download import check_end, crash, download, make_data, measure_span, run_server
from nanochat.download.transfer import Digest
from nanochat.paths import Workspace

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="workers are forked")
NUM_KILLS = 10


def test_ten_kills_among_bad_answers_leave_no_wrong_file(tmp_path: Path) -> None:
    hashes = make_data(tmp_path / "served", num_shards=4, shard_kb=500)
    with run_server(tmp_path / "served", faults=0.3, seed=1, rate=3e6) as url:

        def work(workspace: Workspace) -> None:
            download(workspace, url, 4)

        span = measure_span(tmp_path, work)
        check_end(tmp_path / "whole", hashes)
        tally = crash(tmp_path, work, hashes, NUM_KILLS, 1, span)
    assert (tally.kills, tally.wrong_files) == (NUM_KILLS, 0) and tally.files_checked > NUM_KILLS


def test_the_kills_would_find_a_download_that_does_not_check(tmp_path: Path, monkeypatch) -> None:
    hashes = make_data(tmp_path / "served", num_shards=4, shard_kb=500)
    monkeypatch.setattr(Digest, "is_right", lambda self: True)
    with run_server(tmp_path / "served", faults=0.6, seed=1, rate=0) as url:
        with pytest.raises(AssertionError):
            # As many kills as chance may need: every second download or so meets a file with other bytes.
            crash(tmp_path, lambda workspace: download(workspace, url, 4), hashes, 60, 1, 1.0)
