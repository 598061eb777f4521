"""Midtraining: conversations and tool calls at the base rates, from the base model."""

from typing import Any

from nanochat.stages.display import Display
from nanochat.stages.finetune import run_finetune
from nanochat.stages.job import Job


def run_mid(job: Job, display: Display) -> dict[str, Any]:
    """Train on the mid mixture and return the result. Raises MissingError where base is not done."""
    return run_finetune(job, "mid", "base", job.settings.mid, display)
