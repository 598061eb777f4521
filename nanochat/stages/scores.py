"""Scores as files of the run: whose they are, and which of them need not be measured again.

A score is tied to everything that it hangs on (weights, tokenizer, code, data, settings that change it) by one hash. An
evaluation that is asked to go on takes a score over where its file carries that hash.
"""

import functools
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nanochat
from nanochat.checkpoint import MANIFEST, MODEL
from nanochat.disk import write_atomically
from nanochat.model.gpt import GPT
from nanochat.paths import ModelPath
from nanochat.stages.assemble import assemble_model, load_newest
from nanochat.stages.job import Job
from nanochat.tokenizer.bpe import Tokenizer

IDENTITY = "identity"


@dataclass(frozen=True)
class Subject:
    """What is evaluated. about: what every score says of it, for someone who wants the same number again."""

    path: ModelPath
    model: GPT
    tokenizer: Tokenizer
    about: dict[str, Any]


def load_subject(job: Job, say: Callable[[str], None], of: str | None = None) -> Subject:
    """The furthest model of the run, or the one of stage `of` ("sft", "sft@650"). Collective: every rank calls this."""
    name = f"{job.run.name}/{of}" if of else job.run.name
    path = job.world.ask_main(lambda: job.workspace.resolve_model(name))
    path, checkpoint = load_newest(path, say, job.world)
    assert path.stage is not None
    model, tokenizer, meta = assemble_model(path, checkpoint, job.world.device, job.dtype, job.settings.tokenizer.kind)
    about = {
        "stage": path.stage,
        "step": path.step,
        "model": str(path),
        "model_sha256": read_model_hash(path.checkpoint),
        "tokenizer_hash": meta["tokenizer_hash"],
        "nanochat_version": nanochat.__version__,
        "code_sha256": hash_code(),
        "device": job.world.device.type,
        "dtype": str(job.dtype).removeprefix("torch."),
        "seed": job.settings.runtime.seed,
        "settings": job.settings.eval.model_dump(),
    }
    return Subject(path, model, tokenizer, about)


def read_model_hash(checkpoint: Path) -> str:
    """The SHA-256 of the weights, from the manifest that they have been checked against."""
    return json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["files"][MODEL]["sha256"]


@functools.cache
def hash_code() -> str:
    """SHA-256 over the modules of this package: two versions of the code may score differently."""
    root = Path(nanochat.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def identify(subject: Subject, **what: Any) -> str:
    """The hash of everything that a score hangs on. what: its data and the settings that change it."""
    keys = ("model_sha256", "tokenizer_hash", "code_sha256", "device", "dtype", "seed", "stage", "step")
    whole = {key: subject.about[key] for key in keys} | what
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def score_path(job: Job, subject: Subject, name: str, folder: str = "") -> Path:
    """`eval/sft_letters.json`, or one in a folder below."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name)
    return job.run.eval / folder / f"{subject.path.stage}_{plain}.json"


def save_score(job: Job, path: Path, record: dict[str, Any]) -> None:
    """Write a score; rank 0 does."""
    if job.world.is_main:
        write_atomically(path, json.dumps(record, indent=1))


def find_score(job: Job, path: Path, identity: str) -> dict[str, Any] | None:
    """The score that lies there, where it has this identity. Collective: every rank hears what rank 0 has found."""
    found = None
    if job.world.is_main:
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            found = value if value.get(IDENTITY) == identity else None
        except (OSError, ValueError, AttributeError):
            found = None
    return job.world.all_gather(found)[0]
