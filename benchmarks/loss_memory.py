"""Peak memory and time of the chunked loss beside the plain one, each in its own process.

    python benchmarks/loss_memory.py --tokens 2048 --vocab 50304 --width 256

Forward and backward. On CUDA the peak is the allocator's, elsewhere the process's largest resident size; both are
counted from the moment at which the inputs exist.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from nanochat.model.loss import capped_logits, compute_chunk_loss, softcap_cross_entropy
from nanochat.runtime import name_device, pick_device

SOFTCAP = 15.0
VARIANTS = ("plain", "chunked", "chunked_compiled")


def resident_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(variant: str, tokens: int, vocab: int, width: int, device: torch.device) -> dict[str, float]:
    torch.manual_seed(0)
    hidden = F.rms_norm(torch.randn(tokens, width), (width,)).to(device).requires_grad_()
    weight = (torch.randn(vocab, width) * 0.05).to(device).requires_grad_()
    targets = torch.randint(vocab, (tokens,)).to(device)
    chunk_loss = torch.compile(compute_chunk_loss, dynamic=False) if variant == "chunked_compiled" else None

    def run() -> float:
        hidden.grad = weight.grad = None
        start = time.perf_counter()
        if variant == "plain":
            loss = F.cross_entropy(capped_logits(hidden, weight, SOFTCAP), targets, reduction="sum")
        else:
            loss = softcap_cross_entropy(hidden, weight, targets, softcap=SOFTCAP, chunk_loss=chunk_loss)
        loss.backward()
        loss.item()
        return time.perf_counter() - start

    (torch.randn(64, 64) @ torch.randn(64, 64)).sum()  # what the libraries allocate once
    if variant == "chunked_compiled":
        run()  # the compiler's own memory is not the loss's
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    else:
        before = resident_bytes()
    seconds = [run() for _ in range(2)]
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resident_bytes()
    result = {"seconds": round(min(seconds), 3)}
    if variant != "chunked_compiled" or device.type == "cuda":
        result["peak_mib"] = round((peak - before) / 2**20, 1)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--vocab", type=int, default=50304)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--variant", choices=VARIANTS, help="measure one, in this process")
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    args = parser.parse_args()
    device = pick_device(args.device)
    if args.variant:
        print(json.dumps(measure(args.variant, args.tokens, args.vocab, args.width, device)))
        return
    sizes = ["--tokens", str(args.tokens), "--vocab", str(args.vocab), "--width", str(args.width)]
    variants = {}
    for variant in VARIANTS:
        command = [sys.executable, __file__, *sizes, "--device", device.type, "--variant", variant]
        variants[variant] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    result = {
        "benchmark": "loss_memory",
        "device": name_device(device),
        "torch": torch.__version__,
        "tokens": args.tokens,
        "vocab_size": args.vocab,
        "width": args.width,
        "table_mib": round(args.tokens * args.vocab * 4 / 2**20, 1),
        "variants": variants,
    }
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
