"""Which sandboxed processes count as left behind, told from a table of processes."""

import os

from tests.tools.sandbox.listing import _is_ours

ME = os.getpid()
PARENTS = {1: 0, 50: 1, ME: 50, 60: 50, 101: ME, 102: 101, 201: 60, 301: 1, 401: 50, 500: ME, 501: 500}
SHOWN = dict.fromkeys((101, 102, 201, 301, 401, 501), "")


def test_ours_and_orphans_count_and_those_of_another_worker_do_not() -> None:
    assert {pid for pid in SHOWN if _is_ours(pid, PARENTS, SHOWN)} == {101, 102, 301, 401, 501}
