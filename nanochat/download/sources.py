"""Where data that nobody here made comes from: hub data sets, and the files of each split. Standard library only.

A downloaded file keeps its name on the hub: `$NANOCHAT_HOME/tasks/openai/gsm8k/main/test-00000-of-00001.parquet`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from nanochat.errors import UsageError


@dataclass(frozen=True)
class HubSource:
    """A data set of the hub. files: a glob pattern inside the repository for each split.

    >>> TASK_SOURCES["gsm8k"].files["test"]
    'main/test-*.parquet'
    """

    repo: str
    files: Mapping[str, str]
    revision: str = "main"

    def pattern(self, split: str) -> str:
        """Raises UsageError where the data set has no such split."""
        if split not in self.files:
            raise UsageError(f"{self.repo} has no {split!r} split", f"its splits: {', '.join(self.files)}")
        return self.files[split]


TASK_SOURCES: Mapping[str, HubSource] = {
    "mmlu": HubSource("cais/mmlu", {"train": "auxiliary_train/train-*.parquet", "test": "all/test-*.parquet"}),
    "arc-easy": HubSource("allenai/ai2_arc", {"train": "ARC-Easy/train-*.parquet", "test": "ARC-Easy/test-*.parquet"}),
    "arc-challenge": HubSource(
        "allenai/ai2_arc", {"train": "ARC-Challenge/train-*.parquet", "test": "ARC-Challenge/test-*.parquet"}
    ),
    "gsm8k": HubSource("openai/gsm8k", {"train": "main/train-*.parquet", "test": "main/test-*.parquet"}),
    "humaneval": HubSource("openai/openai_humaneval", {"test": "openai_humaneval/test-*.parquet"}),
    "smoltalk": HubSource(
        "HuggingFaceTB/smol-smoltalk", {"train": "data/train-*.parquet", "test": "data/test-*.parquet"}
    ),
}
"""Tasks by name, whose rows are files of the hub."""

TEXT_SOURCES: Mapping[str, HubSource] = {
    "fineweb-edu": HubSource("karpathy/fineweb-edu-100b-shuffle", {"train": "shard_*.parquet"}),
}
"""Pretraining text by the name of the data set; the last shard is for validation."""

CORE_URL = "https://karpathy-public.s3.us-west-2.amazonaws.com/eval_bundle.zip"
"""The CORE bundle of the DCLM paper (Li et al. 2024) as one zip."""
