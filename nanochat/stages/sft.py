"""Supervised fine-tuning: a smaller mixture at a fraction of the rates, from the mid model."""

from typing import Any

from nanochat.stages.display import Display
from nanochat.stages.finetune import run_finetune
from nanochat.stages.job import Job


def run_sft(job: Job, display: Display) -> dict[str, Any]:
    """Train on the sft mixture and return the result. Raises MissingError where mid is not done."""
    return run_finetune(job, "sft", "mid", job.settings.sft, display)
