"""Tokens a second of our training step beside a plain PyTorch step, in one process, on the same batch.

    python benchmarks/train.py --depth 4 --context 512 --vocab 8192 --tokens 4096

`ours` is what training runs: compiled trunk, chunked loss, MuonAdamW, in the machine's dtype. `plain` is the same model
as one would write it first, in float32: eager, a table of all logits, F.cross_entropy, torch.optim.AdamW for every
parameter (less arithmetic than Muon). `plain_muon` has our optimizer's algorithm from torch.optim (Muon, in bfloat16 as
it always is, and AdamW). Every step is clear, forward, backward, clip, update. The variants take turns, so that a busy
machine slows all alike.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.model.accounting import count_params, flops_per_token
from nanochat.model.config import GPTConfig
from nanochat.model.gpt import GPT
from nanochat.model.optim import ADAM_BETAS, ADAM_EPS, build_optimizer
from nanochat.runtime import name_device, pick_device, pick_dtype, use_all_cores

RATES = {"matrix_lr": 0.02, "embedding_lr": 0.2, "head_lr": 0.004}
GRAD_CLIP = 1.0

Step = Callable[[Tensor, Tensor], Tensor]


def build_model(config: GPTConfig, device: torch.device, dtype: torch.dtype) -> GPT:
    model = GPT(config)
    model.init_weights(0)
    model.compute_dtype = dtype
    return model.to(device)


def build_ours(model: GPT, compiled: bool) -> Step:
    optimizer = build_optimizer(model, **RATES)
    loss_of = model.compile_loss() if compiled else model.loss

    def step(ids: Tensor, targets: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(ids, targets) / targets.numel()
        loss.backward()
        optimizer.reduce_gradients()
        norm = optimizer.grad_norm().item()
        if norm > GRAD_CLIP:
            optimizer.scale_gradients(GRAD_CLIP / norm)
        optimizer.step()
        return loss.detach()

    return step


def build_plain(model: GPT, with_muon: bool) -> Step:
    tables = [model.embedding.weight, model.head.weight]
    matrices = list(model.blocks.parameters())
    rates = {"betas": ADAM_BETAS, "eps": ADAM_EPS, "weight_decay": 0.0}
    optimizers: list[torch.optim.Optimizer]
    if with_muon:
        muon = torch.optim.Muon(matrices, lr=RATES["matrix_lr"], weight_decay=0.0)
        optimizers = [muon, torch.optim.AdamW(tables, lr=RATES["head_lr"], **rates)]
    else:
        optimizers = [torch.optim.AdamW(tables + matrices, lr=RATES["head_lr"], **rates)]

    def step(ids: Tensor, targets: Tensor) -> Tensor:
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss = F.cross_entropy(model(ids).flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(tables + matrices, GRAD_CLIP)
        for optimizer in optimizers:
            optimizer.step()
        return loss.detach()

    return step


def measure(step: Step, ids: Tensor, targets: Tensor) -> tuple[float, float]:
    """Seconds of one step, and its loss."""
    start = time.perf_counter()
    loss = step(ids, targets).item()  # .item() waits for the device
    if ids.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--tokens", type=int, default=4096, help="tokens a step")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each variant, after two that are not")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: all cores")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--variants", default="ours,ours_eager,plain,plain_muon")
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    args = parser.parse_args()
    use_all_cores()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = pick_device(args.device)
    dtype, _ = pick_dtype(args.dtype, device)
    config = GPTConfig.from_depth(args.depth, args.vocab, args.context)
    ids = torch.randint(args.vocab, (args.tokens // args.context, args.context + 1), generator=torch.Generator())
    ids, targets = ids[:, :-1].contiguous().to(device), ids[:, 1:].contiguous().to(device)
    builders: dict[str, Callable[[], Step]] = {
        "ours": lambda: build_ours(build_model(config, device, dtype), compiled=True),
        "ours_eager": lambda: build_ours(build_model(config, device, dtype), compiled=False),
        "plain": lambda: build_plain(build_model(config, device, torch.float32), with_muon=False),
        "plain_muon": lambda: build_plain(build_model(config, device, torch.float32), with_muon=True),
    }
    steps = {name: builders[name]() for name in args.variants.split(",")}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    first: dict[str, tuple[float, float]] = {}
    for turn in range(args.steps + 2):
        for name, step in steps.items():
            elapsed, loss = measure(step, ids, targets)
            print(f"{name} step {turn}: {elapsed:.3f} s, loss {loss:.4f}", file=sys.stderr, flush=True)
            first.setdefault(name, (elapsed, loss))
            if turn >= 2:
                seconds[name].append(elapsed)
    variants = {
        name: {
            "median_seconds": round(statistics.median(times), 4),
            "best_seconds": round(min(times), 4),
            "tokens_per_second": round(ids.numel() / statistics.median(times), 1),
            "first_step_seconds": round(first[name][0], 2),
            "first_loss": round(first[name][1], 5),
        }
        for name, times in seconds.items()
    }
    result = {
        "benchmark": "train",
        "device": name_device(device),
        "dtype": str(dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "config": config.to_dict(),
        "parameters": count_params(config)["total"],
        "flops_per_token": flops_per_token(config),
        "tokens_per_step": ids.numel(),
        "steps": args.steps,
        "variants": variants,
    }
    if "ours" in seconds:
        result["speed_of_ours_relative_to"] = {
            name: {
                "median": round(statistics.median(times) / statistics.median(seconds["ours"]), 3),
                "best": round(min(times) / min(seconds["ours"]), 3),
            }
            for name, times in seconds.items()
            if name != "ours"
        }
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
