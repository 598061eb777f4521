"""The loss of a model, compiled where it can be."""

from collections.abc import Callable

from torch import Tensor

from nanochat.model.gpt import GPT
from nanochat.runtime import can_compile
from nanochat.stages.display import Display
from nanochat.stages.job import Job


def compile_loss(
    job: Job, model: GPT, display: Display, refusal: str = ""
) -> tuple[Callable[[Tensor, Tensor], Tensor], Callable[[], str]]:
    """The loss to train with, and what says in a phrase whether it is compiled, which its first call may change.

    refusal: why it must not be.
    """
    if refusal:
        return model.loss, lambda: f"no ({refusal})"
    if not job.settings.runtime.compile:
        return model.loss, lambda: "no (runtime.compile = false)"
    possible, reason = can_compile()
    if not possible:
        return model.loss, lambda: f"no ({reason})"
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import InductorError

    compiled = model.compile_loss()
    failure = ""

    def loss(ids: Tensor, targets: Tensor) -> Tensor:
        nonlocal failure
        if not failure:
            try:
                return compiled(ids, targets)
            except (TorchDynamoException, InductorError) as error:
                if job.stop is not None and job.stop.requested:  # a request to stop that came while it compiled
                    job.stop.leave()
                failure = f"{type(error).__name__}: {error}".splitlines()[0][:200]
                display.say(f"torch.compile failed, going on without it: {failure}")
        return model.loss(ids, targets)

    def describe() -> str:
        return f"no (it failed: {failure})" if failure else f"yes (with {reason}; the first step takes longer)"

    return loss, describe
