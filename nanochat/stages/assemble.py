"""Put the parts together: a checkpoint and a tokenizer become a model, and a model becomes a chat session."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nanochat.chat.session import CHAT_SAMPLING, ChatSession
from nanochat.checkpoint.checkpoint import Checkpoint, load_checkpoint
from nanochat.checkpoint.manifest import UnreadableError
from nanochat.engine.sampling import SamplingParams
from nanochat.errors import DataError, MissingError, NanochatError
from nanochat.files import await_path
from nanochat.model.config import GPTConfig
from nanochat.model.gpt import GPT
from nanochat.paths import ModelPath
from nanochat.runtime import World, pick_device, pick_dtype
from nanochat.stages.job import Job
from nanochat.tokenizer.bpe import TOKENIZER_FILE, Tokenizer, load_tokenizer


def find_tokenizer(model_path: ModelPath) -> Path:
    """The tokenizer folder of a model: its run's, or one beside or above a bare checkpoint folder."""
    if model_path.run is not None:
        return model_path.run.tokenizer
    folder = model_path.checkpoint.absolute()
    for parent in (folder, *list(folder.parents)[:3]):
        if (parent / "tokenizer").is_dir():
            return parent / "tokenizer"
    raise MissingError(f"there is no tokenizer folder in or above {folder}", "nanochat runs ls")


def open_tokenizer(job: Job) -> Tokenizer:
    """The run's tokenizer. Collective: rank 0 looks whether it is there, and the others wait until they see it, too."""
    folder, kind = job.run.tokenizer, job.settings.tokenizer.kind
    first = job.world.ask_main(lambda: load_tokenizer(folder, kind).hash)
    await_path(folder / TOKENIZER_FILE)
    tokenizer = load_tokenizer(folder, kind)
    if tokenizer.hash != first:
        raise DataError(
            f"{folder} is not the tokenizer that rank 0 reads there", "--home DIR  # one that all machines share"
        )
    tokenizer.num_threads = torch.get_num_threads()  # this process's share of the cores
    return tokenizer


def load_model(
    model_path: ModelPath, device: torch.device, dtype: torch.dtype, kind: str | None = None
) -> tuple[GPT, Tokenizer, dict[str, Any]]:
    """Load a model for inference with its tokenizer; the dict is the checkpoint's meta.

    dtype: of its computing and of its weights. Raises DataError if the checkpoint is corrupt or was trained with
    another tokenizer than the one that is there.
    """
    checkpoint = load_checkpoint(model_path.checkpoint, with_optimizer=False)
    return assemble_model(model_path, checkpoint, device, dtype, kind)


def assemble_model(
    model_path: ModelPath, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, kind: str | None = None
) -> tuple[GPT, Tokenizer, dict[str, Any]]:
    """load_model, of a checkpoint that has been read."""
    tokenizer = load_tokenizer(find_tokenizer(model_path), kind)
    check_tokenizer(checkpoint.meta, tokenizer, str(model_path))
    model = build_model(read_config(checkpoint.meta, str(model_path)), device, dtype, weights_dtype=dtype)
    load_weights(model, checkpoint.model, str(model_path))
    model.requires_grad_(False).eval()
    return model, tokenizer, checkpoint.meta


def load_newest(
    model_path: ModelPath, say: Callable[[str], None], world: World | None = None
) -> tuple[ModelPath, Checkpoint]:
    """Read the weights of a model; if its newest checkpoint is damaged, those of the one before, which is said.

    Collective: every rank of `world` calls this; rank 0 chooses. Raises DataError if the step was asked for, or if no
    checkpoint of the stage is whole.
    """
    read: list[Checkpoint] = []

    def choose() -> ModelPath:
        found: ModelPath | None = model_path
        first: NanochatError | None = None
        while found is not None:
            try:
                read.append(load_checkpoint(found.checkpoint, with_optimizer=False))
                break
            except UnreadableError:
                raise
            except (DataError, MissingError) as error:
                first = first or error
                found = None if model_path.is_exact else found.find_earlier()
        if found is None:
            assert first is not None
            raise type(first)(first.message, suggest_whole(model_path) or first.hint)
        if first is not None:
            again = f"`nanochat resume {found.run.name}` takes the last steps again" if found.run else ""
            say(f"warning: {model_path} is damaged ({first.message}): {found} takes its place; {again}")
        return found

    world = world or World()
    found = world.ask_main(choose)
    if not read:
        await_path(found.checkpoint)
        read.append(load_checkpoint(found.checkpoint, with_optimizer=False))
    return found, read[0]


def find_source(job: Job, before: str) -> ModelPath:
    """The last checkpoint of a finished stage. Raises MissingError if it is not finished."""
    paths, name = job.run.stage(before), job.run.name
    steps = paths.steps()
    if not steps:
        raise MissingError(f"run {name!r} has no {before} model to start from", f"nanochat train {before} --run {name}")
    if not paths.result.is_file():
        raise MissingError(f"{before} of run {name!r} is not finished (step {steps[-1]})", f"nanochat resume {name}")
    return ModelPath(paths.checkpoint(steps[-1]), job.run, before, steps[-1])


def suggest_whole(model_path: ModelPath) -> str:
    """The command to type if a checkpoint is damaged; "" for a bare folder."""
    if model_path.run is None:
        return ""
    name = model_path.run.name
    if model_path.is_exact:
        return f"nanochat runs show {name}  # lists its other checkpoints"
    return f"nanochat resume {name}  # looks at all of its checkpoints"


def build_model(
    config: GPTConfig, device: torch.device, dtype: torch.dtype, weights_dtype: torch.dtype = torch.float32
) -> GPT:
    """A model without meaningful weights on a device: initialise or load them next. weights_dtype: float32 to train."""
    with torch.device("meta"):
        model = GPT(config).to(weights_dtype)
    model = model.to_empty(device=device)
    model.compute_dtype = dtype
    return model


def load_weights(model: GPT, tensors: dict[str, torch.Tensor], name: str, assign: bool = False) -> None:
    """Fill a model. Raises DataError if the tensors are not this model's. assign: take them, without a copy."""
    try:
        model.load_state_dict(tensors, strict=True, assign=assign)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(
            f"the weights of {name} do not fit the model they say they are: {reason}", "nanochat runs ls"
        ) from error


def read_config(meta: dict[str, Any], name: str) -> GPTConfig:
    """The architecture that a checkpoint's meta states."""
    try:
        return GPTConfig.from_dict(meta["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"checkpoint {name} has no usable model config: {error}", "nanochat runs ls") from error


def check_tokenizer(meta: dict[str, Any], tokenizer: Tokenizer, name: str) -> None:
    """Raise DataError if a checkpoint was trained with another tokenizer."""
    trained_with = str(meta.get("tokenizer_hash"))
    if trained_with != tokenizer.hash:
        raise DataError(
            f"{name} was trained with tokenizer {trained_with[:12]}, but the run holds {tokenizer.hash[:12]}",
            "put the run's first tokenizer folder back, or train again in a new run",
        )


def build_session(
    model_path: ModelPath,
    device_name: str = "auto",
    dtype_name: str = "auto",
    *,
    params: SamplingParams = CHAT_SAMPLING,
    system: str = "",
    stop_strings: tuple[str, ...] = (),
    say: Callable[[str], None] = lambda text: None,
) -> ChatSession:
    """A conversation with a trained model, for every face. say: told if another checkpoint takes its place."""
    device = pick_device(device_name)
    dtype, _ = pick_dtype(dtype_name, device)
    found, checkpoint = load_newest(model_path, say)
    model, tokenizer, _ = assemble_model(found, checkpoint, device, dtype)
    return ChatSession(model, tokenizer, name=str(found), params=params, system=system, stop_strings=stop_strings)
