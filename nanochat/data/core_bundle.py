"""The CORE bundle on disk: `core.yaml`, `eval_meta_data.csv` and `eval_data/`, as DCLM has it. No torch, no tokens.

Defaults of a task that `core.yaml` does not state are those of llm-foundry, which the bundle was written for.
Source: Li et al. 2024, "DataComp-LM" (CORE: 22 tasks).
"""

import csv
import difflib
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nanochat.errors import DataError, MissingError, UsageError

Kind = Literal["multiple_choice", "schema", "language_modeling"]
KINDS: tuple[Kind, ...] = ("multiple_choice", "schema", "language_modeling")

CORE_TASKS = (
    "hellaswag_zeroshot",
    "jeopardy",
    "bigbench_qa_wikidata",
    "arc_easy",
    "arc_challenge",
    "copa",
    "commonsense_qa",
    "piqa",
    "openbook_qa",
    "lambada_openai",
    "hellaswag",
    "winograd",
    "winogrande",
    "bigbench_dyck_languages",
    "agi_eval_lsat_ar",
    "bigbench_cs_algorithms",
    "bigbench_operators",
    "bigbench_repeat_copy_logic",
    "squad",
    "coqa",
    "boolq",
    "bigbench_language_identification",
)
"""The tasks whose mean is called CORE."""

TASK_FILE, BASELINE_FILE, DATA_FOLDER = "core.yaml", "eval_meta_data.csv", "eval_data"
AGAIN = "nanochat download core"
UNSUPPORTED = ("prompt_string", "prelimiter", "question_prelimiter", "cot_delimiter")
"""Keys of llm-foundry that would change a prompt and that no CORE task has."""


@dataclass(frozen=True)
class CoreItem:
    """One question: what may be said, as (context, continuation) pairs, and which of them is right.

    Multiple choice: one context, several continuations. Schema: several contexts, one continuation. Language
    modelling: a single pair.
    """

    options: tuple[tuple[str, str], ...]
    gold: int


@dataclass(frozen=True)
class CoreTask:
    """One task of the bundle. baseline: the accuracy of guessing, 0 to 1."""

    label: str
    kind: Kind
    path: Path
    num_fewshot: int
    baseline: float
    continuation_delimiter: str = " "
    example_delimiter: str = "\n"


@dataclass(frozen=True)
class CoreBundle:
    """The tasks at hand in the order of `core.yaml`, and those of CORE that are not, each with the reason."""

    tasks: tuple[CoreTask, ...]
    missing: dict[str, str]

    @property
    def is_core(self) -> bool:
        """Whether the mean over these tasks is CORE: all 22 and no other."""
        return len(self.tasks) == len(CORE_TASKS) and {task.label for task in self.tasks} == set(CORE_TASKS)


def has_bundle(folder: Path) -> bool:
    """Whether there is a bundle to read."""
    return (folder / TASK_FILE).is_file()


def check_bundle(folder: Path) -> None:
    """Raise MissingError where there is no bundle."""
    if not has_bundle(folder):
        raise MissingError(f"the CORE bundle is not in {folder}", AGAIN)


def load_bundle(folder: Path, only: Sequence[str] = ()) -> CoreBundle:
    """Read which tasks there are. only: labels to keep; default: all.

    Raises MissingError where there is no bundle, DataError where it is damaged, UsageError for a label that it lacks.
    """
    import yaml  # here, since commands that only ask whether there is a bundle start without it

    check_bundle(folder)
    baselines = _read_baselines(folder / BASELINE_FILE)
    path = folder / TASK_FILE
    try:
        listed = yaml.safe_load(path.read_text(encoding="utf-8"))["icl_tasks"]
        entries = [dict(entry) for entry in listed]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise DataError(f"{path} is not a list of tasks: {_first_line(error)}", AGAIN) from error
    tasks = [_parse_task(entry, folder / DATA_FOLDER, baselines, path) for entry in entries]
    labels = [task.label for task in tasks]
    if twice := next((label for label in labels if labels.count(label) > 1), None):
        raise DataError(f"{path} names task {twice!r} twice", AGAIN)
    missing = {label: "not in core.yaml" for label in CORE_TASKS if label not in labels}
    missing |= {task.label: f"no {task.path.name}" for task in tasks if not task.path.is_file()}
    present = [task for task in tasks if task.label not in missing]
    if only:
        _check_labels(only, [task.label for task in present], missing)
        missing |= {task.label: "not asked for" for task in present if task.label not in only}
        present = [task for task in present if task.label in only]
    if not present:
        raise MissingError(f"none of the tasks of {path} has its data", AGAIN)
    order = [*CORE_TASKS, *labels]
    return CoreBundle(tuple(present), dict(sorted(missing.items(), key=lambda pair: order.index(pair[0]))))


def check_labels(folder: Path, only: Sequence[str]) -> None:
    """Raise as `load_bundle` does for labels that no bundle has, also before there is one."""
    if has_bundle(folder):
        load_bundle(folder, only)
    else:
        _check_labels(only, CORE_TASKS, {})


def load_items(task: CoreTask) -> tuple[list[CoreItem], str]:
    """Read the questions of a task, and the SHA-256 of the file. Raises DataError with the line that is wrong."""
    try:
        data = task.path.read_bytes()
    except OSError as error:
        raise DataError(f"{task.path} cannot be read: {error.strerror}", AGAIN) from error
    items = []
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            items.append(parse_item(task.kind, json.loads(line)))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{task.path}:{number}: {_first_line(error)}", AGAIN) from error
    if not items:
        raise DataError(f"{task.path} holds no question", AGAIN)
    return items, hashlib.sha256(data).hexdigest()


def parse_item(kind: Kind, value: Any) -> CoreItem:
    """Turn a line into options. Texts are stripped: the delimiters bring the space. Raises ValueError.

    >>> parse_item("multiple_choice", {"query": "1+1 =", "choices": ["2", "3"], "gold": 0})
    CoreItem(options=(('1+1 =', '2'), ('1+1 =', '3')), gold=0)
    """
    if not isinstance(value, dict):
        raise ValueError("expected an object")
    if kind == "language_modeling":
        return CoreItem(((_text(value, "context"), _text(value, "continuation")),), 0)
    if kind == "schema":
        continuation = _text(value, "continuation")
        options = tuple((context, continuation) for context in _texts(value, "context_options"))
    else:
        query = _text(value, "query", may_be_empty=True)
        options = tuple((query, choice) for choice in _texts(value, "choices"))
    gold = value.get("gold")
    if not isinstance(gold, int) or isinstance(gold, bool) or not 0 <= gold < len(options):
        raise ValueError(f"gold = {gold!r} is not one of 0 to {len(options) - 1}")
    return CoreItem(options, gold)


def _parse_task(entry: dict[str, Any], data: Path, baselines: dict[str, str], path: Path) -> CoreTask:
    label, kind, uri = (entry.get(key) for key in ("label", "icl_task_type", "dataset_uri"))
    if not isinstance(label, str) or not isinstance(uri, str):
        raise DataError(f"{path}: a task has no label or no dataset_uri: {entry}", AGAIN)
    if kind not in KINDS:
        raise DataError(f"{path}: icl_task_type = {kind!r} of {label} is none of {', '.join(KINDS)}", AGAIN)
    shots = entry.get("num_fewshot")
    shots = shots[0] if isinstance(shots, list) and len(shots) == 1 else shots
    if not isinstance(shots, int) or isinstance(shots, bool) or shots < 0:
        raise DataError(f"{path}: num_fewshot = {entry.get('num_fewshot')!r} of {label} is not one number", AGAIN)
    if unsupported := next((key for key in UNSUPPORTED if entry.get(key)), None):
        raise DataError(f"{path}: {unsupported} of {label} is not supported", AGAIN)
    baseline = _parse_baseline(label, baselines, path.with_name(BASELINE_FILE))
    file = data / uri
    if not file.resolve().is_relative_to(data.resolve()):
        raise DataError(f"{path}: dataset_uri = {uri!r} of {label} leads out of {data}", AGAIN)
    between, before = entry.get("example_delimiter", "\n"), entry.get("continuation_delimiter", " ")
    kind = KINDS[KINDS.index(kind)]
    return CoreTask(label, kind, file, shots, baseline, str(before), str(between))


def _read_baselines(path: Path) -> dict[str, str]:
    """Random accuracies by task in percent, as they stand there: the file has tasks that are not ours, too."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return {row["Eval Task"].strip(): row["Random baseline"] or "" for row in csv.DictReader(file)}
    except FileNotFoundError:
        raise DataError(f"there is no {path}: what guessing gets is unknown", AGAIN) from None
    except (OSError, ValueError, KeyError, AttributeError, csv.Error) as error:
        raise DataError(
            f"{path} does not have the columns 'Eval Task' and 'Random baseline': {_first_line(error)}", AGAIN
        ) from error


def _parse_baseline(label: str, baselines: dict[str, str], path: Path) -> float:
    if label not in baselines:
        raise DataError(f"{path} has no random baseline for {label}", AGAIN)
    try:
        value = float(baselines[label])
    except ValueError:
        value = math.nan
    if not 0 <= value < 100:
        raise DataError(f"{path}: the random baseline of {label} is {baselines[label]!r}, not in [0, 100)", AGAIN)
    return value / 100


def _check_labels(only: Sequence[str], present: Sequence[str], missing: dict[str, str]) -> None:
    for label in only:
        if label in present:
            continue
        if label in missing:
            raise MissingError(f"the bundle has no {label}: {missing[label]}", AGAIN)
        near = difflib.get_close_matches(label, present, n=1)
        guess = f"did you mean {near[0]!r}? " if near else ""
        raise UsageError(f"there is no CORE task {label!r}", f"{guess}tasks: {', '.join(present)}")


def _text(value: dict[str, Any], key: str, may_be_empty: bool = False) -> str:
    text = value.get(key)
    if not isinstance(text, str) or not (text.strip() or may_be_empty):
        raise ValueError(f"{key} = {text!r} is not a text")
    return text.strip()


def _texts(value: dict[str, Any], key: str) -> list[str]:
    texts = value.get(key)
    if not isinstance(texts, list) or len(texts) < 2 or not all(isinstance(t, str) and t.strip() for t in texts):
        raise ValueError(f"{key} is not a list of two or more texts")
    return [text.strip() for text in texts]


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
