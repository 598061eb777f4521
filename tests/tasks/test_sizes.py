from pathlib import Path

import pytest

from nanochat.config.load import load_settings
from nanochat.errors import MissingError, UsageError
from nanochat.tasks.catalog import HUB, build_mixture, find_missing
from nanochat.tasks.sizes import TRAIN_EXAMPLES, count_conversations


@pytest.mark.parametrize("preset", ["d12", "d20", "d26", "d32"])
def test_the_numbers_in_the_comments_of_a_preset_are_those_of_its_mixtures(preset: str) -> None:
    settings = load_settings(preset, environ={})[0]
    assert count_conversations(settings.mid.mixture) == 606_256
    assert count_conversations(settings.sft.mixture) == 21_729


def test_a_mixture_of_made_tasks_has_as_many_as_are_counted() -> None:
    mixture = ["letters:30", "identity*3", "spelling-bee:10:40:3", "stories"]
    assert count_conversations(mixture) == len(build_mixture(mixture))
    assert set(TRAIN_EXAMPLES) <= set(HUB)


def test_what_is_not_downloaded_is_listed_once(tmp_path: Path) -> None:
    mixture = ["gsm8k:5", "letters:3", "mmlu*2", "gsm8k"]
    assert find_missing(mixture, ["arc-easy", "gsm8k", "letters"], folder=tmp_path) == ["gsm8k", "mmlu", "arc-easy"]
    with pytest.raises(UsageError, match="no task 'leters'"):
        find_missing(["leters"], folder=tmp_path)
    with pytest.raises(MissingError, match="none.jsonl"):
        find_missing([], [f"custom:{tmp_path}/none.jsonl"], folder=tmp_path)
