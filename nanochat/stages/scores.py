"""Scores as files of the run: whose they are, and which of them need not be measured again.

A score is tied to everything that it depends on (weights, tokenizer, code, data, settings that change it) by one hash.
An evaluation that is asked to continue takes a score over if its file carries that hash.

`eval/sft_letters.json` is the score that counts: that of the newest model, sampled as the run's settings say, and of
the fullest evaluation of it. Others, measured on less or with other settings, stand beside it as
`sft_letters-1f0c9a3e.json` and say `"counts": false`.
"""

import functools
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nanochat
from nanochat.checkpoint.manifest import MODEL, read_manifest
from nanochat.config.load import read_saved
from nanochat.config.settings import SAMPLED
from nanochat.files import write_atomically
from nanochat.model.gpt import GPT
from nanochat.paths import ModelPath, RunPaths
from nanochat.stages.assemble import assemble_model, load_newest
from nanochat.stages.job import Job
from nanochat.tokenizer.bpe import Tokenizer

IDENTITY = "identity"


@dataclass(frozen=True)
class Subject:
    """What is evaluated. about: what every score says of it, so that the same number can be had again."""

    path: ModelPath
    model: GPT
    tokenizer: Tokenizer
    about: dict[str, Any]


def load_subject(job: Job, of: str | None = None) -> Subject:
    """The furthest model of the run, or the one of stage `of` ("sft", "sft@650"). Collective: every rank calls this."""
    name = f"{job.run.name}/{of}" if of else job.run.name
    path = job.world.ask_main(lambda: job.workspace.resolve_model(name))
    path, checkpoint = load_newest(path, job.say, job.world)
    assert path.stage is not None
    model, tokenizer, meta = assemble_model(path, checkpoint, job.world.device, job.dtype, job.settings.tokenizer.kind)
    about = {
        "stage": path.stage,
        "step": path.step,
        "model": str(path),
        "model_sha256": read_manifest(path.checkpoint)["files"][MODEL]["sha256"],  # which has been checked
        "tokenizer_hash": meta["tokenizer_hash"],
        "nanochat_version": nanochat.__version__,
        "code_sha256": hash_code(),
        "device": job.world.device.type,
        "dtype": job.dtype_name,
        "seed": job.settings.runtime.seed,
        "settings": job.settings.eval.model_dump(),
    }
    return Subject(path, model, tokenizer, about)


@functools.cache
def hash_code() -> str:
    """SHA-256 over the modules of this package: two versions of the code may score differently."""
    root = Path(nanochat.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def identify(subject: Subject, **what: Any) -> str:
    """The hash of everything that a score depends on. what: its data and the settings that change it."""
    keys = ("model_sha256", "tokenizer_hash", "code_sha256", "device", "dtype", "seed", "stage", "step")
    whole = {key: subject.about[key] for key in keys} | what
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def score_path(job: Job, subject: Subject, name: str, folder: str = "") -> Path:
    """`eval/sft_letters.json`, or one in a folder below."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name)
    return job.run.eval / folder / f"{subject.path.stage}_{plain}.json"


def save_score(job: Job, path: Path, record: dict[str, Any], measured: dict[str, Any]) -> None:
    """Write a score, beside one that counts more, or in the place of one that counts less; rank 0 does.

    measured: the settings that the score depends on; only another with the same ones is overwritten.
    """
    if not job.world.is_main:
        return
    record = record | {"measured": measured | {key: record[key] for key in ("step", "seed", "dtype")}}
    kept = _read(path)
    if kept is not None and kept.get("measured") != record["measured"]:
        if counts_more(job.run, kept, record):
            path, record = _beside(path, record), record | {"counts": False}
        elif "measured" in kept:
            write_atomically(_beside(path, kept), json.dumps(kept | {"counts": False}, indent=1))
    write_atomically(path, json.dumps(record, indent=1))
    if record.get("counts", True):
        _beside(path, record).unlink(missing_ok=True)


def counts_more(run: RunPaths, kept: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether a score that is there counts more than another one: of a newer model that is still there, or fuller."""
    if kept.get("step") != other.get("step"):
        paths, step = run.stage(str(kept.get("stage"))), kept.get("step")
        return isinstance(step, int) and step > other["step"] and step in paths.steps()
    is_same_model = kept.get("model_sha256") in (None, other.get("model_sha256"))
    ranks = [(is_as_run_says(run, record), measure_extent(record)) for record in (kept, other)]
    return is_same_model and ranks[0] > ranks[1]


def is_as_run_says(run: RunPaths, record: dict[str, Any]) -> bool:
    """Whether answers were sampled as the run's own settings say; what does not sample, or does not say, was."""
    measured = record.get("measured")
    if not isinstance(measured, dict) or not run.settings.is_file():
        return True
    options = read_saved(run.settings)[1].eval.model_dump(include=set(SAMPLED))
    return all(measured.get(key, value) == value for key, value in options.items())


def measure_extent(record: dict[str, Any]) -> tuple[int, int]:
    """How full an evaluation was: its tasks, and its questions or tokens.

    >>> measure_extent({"tasks": ["letters", "arithmetic"], "num_questions": 600}), measure_extent({"total": 300})
    ((2, 600), (1, 300))
    """
    tasks = record.get("core_tasks") or record.get("tasks") or [{}]
    sizes = [record.get(key) for key in ("total", "num_questions", "num_tokens")]
    if record.get("core_tasks"):
        sizes = [sum(task.get("total", 0) for task in tasks)]
    return len(tasks), next((size for size in sizes if isinstance(size, int)), 0)


def _beside(path: Path, record: dict[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(record["measured"], sort_keys=True).encode()).hexdigest()
    return path.with_name(f"{path.stem}-{digest[:8]}.json")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def find_score(job: Job, path: Path, identity: str) -> dict[str, Any] | None:
    """The score that lies there or beside it, if it has this identity. Collective: all ranks hear what rank 0 finds."""

    def find() -> dict[str, Any] | None:
        read = map(_read, [path, *sorted(path.parent.glob(f"{path.stem}-*.json"))])
        return next((value for value in read if value and value.get(IDENTITY) == identity), None)

    return job.world.ask_main(find)
