"""The writer of safetensors files: one tensor in memory at a time, hashed while it is written.

The library's own writer needs all tensors in CPU memory at once, and writes in ways that differ between its versions
(through a memory map a full disk would be a signal, not an error). Knows neither checkpoints nor runs.
Source: the format, https://github.com/huggingface/safetensors#format.
"""

import hashlib
import json
import os
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from nanochat.files import sync_file

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_tensors(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> dict[str, int | str]:
    """Write tensors of any device, down to the disk; returns {"bytes": size, "sha256": hash} of the file.

    metadata: of the header. Raises OSError if the disk is full or fails, KeyError for a dtype that the format has not.
    """
    # The library's order: wide types first, so that each tensor is aligned; then by name.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    table: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for name, tensor in ordered:
        table[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    header = json.dumps(table, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    digest, size = hashlib.sha256(), 0
    with path.open("wb", buffering=0) as file:
        for block in chain([len(header).to_bytes(8, "little") + header], (_bytes_of(tensor) for _, tensor in ordered)):
            size += _write_all(file.fileno(), block)
            digest.update(block)
        sync_file(file.fileno())
    return {"bytes": size, "sha256": digest.hexdigest()}


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _write_all(descriptor: int, block: bytes | memoryview) -> int:
    """Write a whole block: the system takes at most 2 GB at a time, and less where the disk is almost full."""
    view = memoryview(block)
    while view:
        view = view[os.write(descriptor, view) :]
    return len(block)
