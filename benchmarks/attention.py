"""Causal attention by blocks beside torch's fused kernel, forward alone and with backward, on this CPU.

    python benchmarks/attention.py [--out benchmarks/results/attention_cpu.json]

4,096 tokens a batch, 2 heads of 128; `blocks` compiled, as in training. The variants take turns; the best of 8 counts.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.model.attention import attend_by_blocks, normalize
from nanochat.runtime import name_device, pick_dtype, use_all_cores

TOKENS, HEADS, WIDTH = 4096, 2, 128

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


def measure(attend: Attend, q: Tensor, backward: bool) -> float:
    start = time.perf_counter()
    y = attend(q, q, q)
    if backward:
        y.backward(y.detach())
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    options = parser.parse_args()
    use_all_cores()
    device = torch.device("cpu")
    dtype = pick_dtype("auto", device)[0]
    rows = []
    for context in (256, 512, 1024):
        variants: dict[str, Attend] = {"fused": fused, "blocks": torch.compile(attend_by_blocks, dynamic=False)}
        for backward in (False, True):
            q = normalize(torch.randn(TOKENS // context, context, HEADS, WIDTH)).to(dtype).requires_grad_(backward)
            best = dict.fromkeys(variants, float("inf"))
            for turn in range(10):
                for name, attend in variants.items():
                    seconds = measure(attend, q, backward)
                    if turn >= 2:
                        best[name] = min(best[name], seconds)
            milliseconds = {name: round(1e3 * seconds, 2) for name, seconds in best.items()}
            ratio = round(best["fused"] / best["blocks"], 2)
            rows.append({"context": context, "backward": backward, "milliseconds": milliseconds, "ratio": ratio})
    result = {"benchmark": "attention", "device": name_device(device), "dtype": str(dtype).removeprefix("torch.")}
    text = json.dumps(result | {"torch": torch.__version__, "rows": rows}, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
