"""What it costs to throw the ends of long documents away: val bpb of a base model trained on whole documents and of one
trained on cropped rows, each on the whole validation text and on cropped validation rows.

    nanochat train base --config benchmarks/real_text.toml --run whole
    nanochat runs copy whole cropped --until tokenizer
    nanochat train base --config benchmarks/real_text.toml --run cropped --set data.packing=crop
    python benchmarks/packing.py whole cropped
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from nanochat.data.packing import Packing
from nanochat.evals.bpb import measure_bits
from nanochat.launch.launch import read_environ, resolve_home
from nanochat.paths import Workspace
from nanochat.runtime import name_device, pick_dtype, use_all_cores
from nanochat.stages.assemble import load_model
from nanochat.stages.base import iter_validation
from nanochat.stages.job import read_settings

WAYS: tuple[Packing, ...] = ("cut", "crop")
SHOWN = ("dropped_share", "val_bpb", "tokens", "tokens_per_second", "seconds", "num_params", "dtype_reason")


def measure(workspace: Workspace, name: str) -> dict:
    """The settings and the result of a run, and its bits per byte on rows of both kinds."""
    _, run, settings = read_settings(workspace.run(name).settings)
    device = torch.device("cpu")
    dtype, _ = pick_dtype(settings.runtime.dtype, device)
    model, tokenizer, meta = load_model(workspace.resolve_model(f"{name}/base"), device, dtype)
    token_bytes = torch.tensor(tokenizer.token_bytes)
    folder, wish = workspace.home / "data" / settings.data.dataset, settings.base
    bits = {}
    for way in WAYS:
        batches = iter_validation(folder, tokenizer, 16, model.config.context, way)
        found = measure_bits(model, batches, token_bytes, wish.eval_tokens)
        bits[way] = {"bpb": round(found.bpb, 4), "tokens": found.num_tokens, "bytes": found.num_bytes}
    result = json.loads(run.stage("base").result.read_text(encoding="utf-8"))
    return {
        "packing": settings.data.packing,
        "result": {key: result[key] for key in SHOWN},
        "rates": {key: getattr(wish, key) for key in ("matrix_lr", "embedding_lr", "head_lr", "warmdown", "num_steps")},
        "config": meta["config"],
        "validation_rows": bits,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="finished base runs on the same text")
    parser.add_argument("--home", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "packing.json")
    options = parser.parse_args(arguments)

    workspace = Workspace(resolve_home(options.home, read_environ()))
    use_all_cores()
    record = {"benchmark": "packing", "device": name_device(torch.device("cpu")), "torch": torch.__version__}
    record |= {"runs": {name: measure(workspace, name) for name in options.runs}}
    text = json.dumps(record, indent=1)
    print(text)
    options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
