"""A request to stop is heard, whoever catches the error that it raises."""

import os
import signal
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch._dynamo.exc import BackendCompilerFailed

import nanochat.stages.computing as computing
from nanochat.config.settings import Settings
from nanochat.errors import StoppedError
from nanochat.runtime import World
from nanochat.stages.display import Display
from nanochat.stages.job import Job
from nanochat.training.stop import StopRequests


class StoppedWhileItCompiles:
    """A model whose compiler takes the request to stop for an error of its own, as torch's does."""

    def compile_loss(self) -> Any:
        def compiled(ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                raise RuntimeError("the compiler fails by itself")
            except Exception as error:
                raise BackendCompilerFailed(print, error, None) from error

        return compiled

    def loss(self, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return torch.tensor(1.5)


class FailsToCompile(StoppedWhileItCompiles):
    def compile_loss(self) -> Any:
        def compiled(ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            raise BackendCompilerFailed(print, RuntimeError("no such header"), None)

        return compiled


def test_a_result_says_no_where_the_compiler_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(computing, "can_compile", lambda: (True, "g++"))
    job = Job(None, None, Settings(), World(), torch.float32, "", display=Display(quiet=True))  # type: ignore[arg-type]
    ids = torch.zeros(1, 1, dtype=torch.int64)
    loss, describe = computing.compile_loss(job, FailsToCompile())  # type: ignore[arg-type]
    assert describe().startswith("yes (with g++")
    assert loss(ids, ids).item() == 1.5
    assert describe().startswith("no (it failed: BackendCompilerFailed: ")


@pytest.mark.parametrize("is_deferred", [False, True])
def test_a_stop_while_compiling_is_not_taken_for_a_failure_to_compile(
    monkeypatch: pytest.MonkeyPatch, is_deferred: bool
) -> None:
    monkeypatch.setattr(computing, "can_compile", lambda: (True, "g++"))
    job = Job(None, None, Settings(), World(), torch.float32, "", display=Display(quiet=True))  # type: ignore[arg-type]
    ids = torch.zeros(1, 1, dtype=torch.int64)
    with StopRequests("base", "nanochat resume") as stop:
        loss, _ = computing.compile_loss(replace(job, stop=stop), StoppedWhileItCompiles())  # type: ignore[arg-type]
        if is_deferred:  # someone looks at the flag after the step: it is finished without the compiler
            stop.defer()
            assert loss(ids, ids).item() == 1.5
        else:
            with pytest.raises(StoppedError, match="stopped before its first step"):
                loss(ids, ids)
        assert stop.requested
