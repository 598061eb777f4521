"""`nanochat export hf`: a model for other programs."""

import json
import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer

from nanochat.cli.options import Invocation, command, new_group
from nanochat.errors import UsageError
from nanochat.files import CHOOSE_ANOTHER, describe_unsynced, disk_errors
from nanochat.paths import ModelPath
from nanochat.text import format_size

app = new_group("Write models for other programs.")


@command(app, "hf", "nanochat export hf demo/sft --out demo-hf")
def export_hf(
    invocation: Invocation,
    model: Annotated[
        str | None,
        typer.Argument(help="RUN, RUN/sft, RUN/sft@650 or a checkpoint folder; default: the newest model."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Default: ./RUN-STAGE-hf.")] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16"], typer.Option("--dtype", help="Of the weights; bfloat16 halves them.")
    ] = "float32",
) -> None:
    """Write safetensors, tokenizer and chat template for Hugging Face's transformers, and read them back."""
    found = invocation.workspace.resolve_model(model)
    invocation.console.say(f"model {found}")
    folder = (out or Path(name_folder(found))).expanduser().resolve()
    with disk_errors(folder.parent, CHOOSE_ANOTHER):
        check_folder(folder, invocation.yes)
    if invocation.dry_run:
        invocation.would(f"write {folder}")
        return

    import torch

    from nanochat.stages.export import export_hf as write

    export = write(found, folder, getattr(torch, dtype), invocation.console.say)
    size = format_size(sum(export.files.values()))
    template = "with" if export.has_chat_template else "a base model, without"
    invocation.console.say(
        f"{export.num_params:,} weights in {dtype}, {size}, {template} chat template; read back and compared"
    )
    if warning := describe_unsynced(folder):
        invocation.console.say(warning)
    if invocation.as_json:
        invocation.console.show_json(export.to_dict())
    else:
        invocation.console.show(str(export.folder))
    prompt = '[{"role": "user", "content": "Hi"}]' if export.has_chat_template else '"Once"'
    path = json.dumps(str(folder), ensure_ascii=False)
    code = f'from transformers import pipeline; print(pipeline("text-generation", {path})({prompt}))'
    invocation.console.suggest(f"python -c {shlex.quote(code)}")


def name_folder(model: ModelPath) -> str:
    """The folder's name where none is given."""
    if model.run is None:
        return f"{model.checkpoint.absolute().name}-hf"
    return f"{model.run.name}-{model.stage}-hf"


def check_folder(folder: Path, replace: bool) -> None:
    """Raise UsageError where something stands there that may not be replaced; only an earlier export ever is."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UsageError(f"{folder} is a file", f"--out {shlex.quote(f'{folder}-2')}")
    if not any(folder.iterdir()):
        return
    if not is_export(folder):
        raise UsageError(f"{folder} is not empty, and no export of ours", f"--out {shlex.quote(f'{folder}-2')}")
    if not replace:
        raise UsageError(
            f"there is an export in {folder} already", f"--out {shlex.quote(f'{folder}-2')}  # --yes replaces it"
        )


def is_export(folder: Path) -> bool:
    """Whether a folder holds what we write, and nothing else."""
    names = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    is_ours = isinstance(config, dict) and config.get("model_type") == "nanochat"
    return is_ours and {path.name for path in folder.iterdir()} <= names
