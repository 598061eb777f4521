"""What a forked worker of the injected-write matrix does: one save of a few tensors, with its exit code."""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from nanochat.checkpoint.checkpoint import save_checkpoint
from nanochat.errors import NanochatError
from nanochat.paths import StagePaths


def save(arguments: Sequence[str]) -> int:
    """Arguments: the stage's folder and the step."""
    stage, step = StagePaths(Path(arguments[0])), int(arguments[1])
    model = {"a": torch.full((300, 20), float(step)), "b": torch.arange(4)}
    optimizer = {"a.momentum": torch.full((300, 20), -float(step))}
    try:
        save_checkpoint(stage, step, model, optimizer, {"step": step}, {}, keep=1)
    except NanochatError as error:
        sys.stderr.write(f"error: {error.message}\nhint:  {error.hint}\n")
        return error.exit_code
    return 0
