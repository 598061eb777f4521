"""What a device has, what a process takes, and what the ranks make of it."""

import sys
from pathlib import Path

import pytest
import torch

from nanochat.device_memory import _read_container_memory, peak_memory_bytes, read_memory, start_memory

CPU = torch.device("cpu")
MIB = 2**20


def test_the_peak_of_a_process_is_how_much_it_has_grown_since_the_start() -> None:
    start = start_memory(CPU)
    assert peak_memory_bytes(CPU, start) < 60 * MIB
    held = torch.ones(100 * MIB, dtype=torch.uint8)
    assert read_memory(CPU).own >= start + 90 * MIB
    del held
    assert 90 * MIB <= peak_memory_bytes(CPU, start) <= 200 * MIB  # the peak stays when the memory is given back


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system says only its size")
def test_free_memory_is_within_what_the_machine_has() -> None:
    memory = read_memory(CPU)
    assert 0 < memory.own < memory.total and 0 < memory.free < memory.total and memory.others >= 0


def test_the_limit_of_a_container_counts(tmp_path: Path) -> None:
    (tmp_path / "memory.stat").write_text("anon 7\ninactive_file 100\n")
    (tmp_path / "memory.max").write_text("4000\n")
    (tmp_path / "memory.current").write_text("1100\n")
    assert list(_read_container_memory(tmp_path)) == [(4000, 1000)]  # the system gives file caches up
    (tmp_path / "memory.max").write_text("max\n")
    assert list(_read_container_memory(tmp_path)) == []
    folder = tmp_path / "memory"
    folder.mkdir()
    (folder / "memory.stat").write_text("")
    (folder / "memory.limit_in_bytes").write_text("5000")
    (folder / "memory.usage_in_bytes").write_text("10")
    assert list(_read_container_memory(tmp_path)) == [(5000, 10)]
