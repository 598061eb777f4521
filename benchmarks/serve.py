"""The server under load: many streams at once, some of them dropped in the middle, beside one stream alone.

    python benchmarks/serve.py MODEL [--streams 64] [--seconds 60] [--slots 64]

Starts `nanochat serve MODEL` on a free port. First one stream after another, for their tokens a second; then STREAMS
clients that each ask again and again; one answer in ten is dropped at a random token. Reported: errors, answers,
tokens a second of all together and as a multiple of one stream's, times to the first token and gaps between tokens, the
server's memory at the start and the end, and whether all slots are free at the end. Writes results/serve.json.
"""

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from nanochat.machine import cpu_name, usable_cores

WORDS = ["strawberry", "elephant", "banana", "committee", "bookkeeper", "mississippi", "window", "letter"]
ALONE_SECONDS = 10.0
DROPPED = 0.1
SHORTEST = 16
"""Tokens of a short answer: a drop comes before."""


@dataclass
class Seen:
    """What the clients measured."""

    answers: int = 0
    dropped: int = 0
    errors: list[str] = field(default_factory=list)
    tokens: int = 0
    first: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)


async def ask(client: httpx.AsyncClient, rng: random.Random, max_tokens: int, drop: bool, seen: Seen) -> None:
    """One streamed answer, dropped after some tokens where asked."""
    question = rng.choice(["Tell me a short story.", f"How many letters e are in {rng.choice(WORDS)}?"])
    body = {
        "messages": [{"role": "user", "content": question}],
        "max_tokens": max_tokens,
        "temperature": 1.0,
        "seed": rng.randrange(10**9),
        "stream": True,
        "logprobs": True,  # so that every token is an event of its own
    }
    leave_after = rng.randrange(1, SHORTEST) if drop else None
    started = last = time.perf_counter()
    num = 0
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        if answer.status_code != 200:
            seen.errors.append(f"{answer.status_code} {(await answer.aread())[:200]!r}")
            return
        async for line in answer.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            event = json.loads(line[6:])
            if "error" in event:
                seen.errors.append(event["error"]["message"])
                return
            choice = event["choices"][0]
            if choice["logprobs"] is None:
                continue
            now = time.perf_counter()
            (seen.gaps if num else seen.first).append(now - (last if num else started))
            last, num = now, num + 1
            seen.tokens += len(choice["logprobs"]["content"])
            if leave_after is not None and num >= leave_after:
                seen.dropped += 1
                return
    seen.answers += 1


async def load(url: str, streams: int, seconds: float, max_tokens: int, dropped: float) -> Seen:
    seen, end = Seen(), time.monotonic() + seconds

    async def client_loop(number: int) -> None:
        rng = random.Random(number)
        limits = httpx.Limits(max_connections=1)
        async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
            while time.monotonic() < end:
                try:
                    await ask(client, rng, max_tokens, rng.random() < dropped, seen)
                except httpx.HTTPError as error:
                    seen.errors.append(f"{type(error).__name__}: {error}")

    await asyncio.gather(*(client_loop(number) for number in range(streams)))
    return seen


def resident_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith("VmRSS"))


def quantiles(values: list[float]) -> dict[str, float]:
    """Milliseconds."""
    points = statistics.quantiles(values, n=100)
    return {f"p{p}": round(1000 * points[p - 1], 1) for p in (50, 95, 99)} | {"max": round(1000 * max(values), 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "serve.json")
    options = parser.parse_args()
    words = ["serve", options.model, "--port", "0", "--slots", str(options.slots)]
    code = "import sys; from nanochat.cli.main import main; sys.exit(main())"
    process = subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        if not url:
            raise SystemExit(process.wait())  # it has said why
        asyncio.run(load(url, 1, 3, options.max_tokens, 0))  # warm up
        alone = asyncio.run(load(url, 1, ALONE_SECONDS, options.max_tokens, 0))
        asyncio.run(load(url, options.streams, 5, options.max_tokens, DROPPED))
        memory = [resident_mb(process.pid)]
        started = time.monotonic()
        seen = asyncio.run(load(url, options.streams, options.seconds, options.max_tokens, DROPPED))
        seconds = time.monotonic() - started
        memory.append(resident_mb(process.pid))
        health = httpx.get(f"{url}/health").json()
    finally:
        process.terminate()
        code = process.wait(60)
    rates = (alone.tokens / ALONE_SECONDS, seen.tokens / seconds)
    record = {
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "streams": options.streams,
        "slots": options.slots,
        "seconds": round(seconds, 1),
        "answers": seen.answers,
        "dropped": seen.dropped,
        "errors": len(seen.errors),
        "first_errors": seen.errors[:3],
        "alone_tokens_per_second": round(rates[0], 1),
        "tokens_per_second": round(rates[1], 1),
        "times_one_stream": round(rates[1] / rates[0], 2),
        "first_token_ms": {"alone": quantiles(alone.first), "loaded": quantiles(seen.first)},
        "gap_ms": {"alone": quantiles(alone.gaps), "loaded": quantiles(seen.gaps)},
        "server_memory_mb": [round(value, 1) for value in memory],
        "busy_slots_after": health["running"] + health["waiting"],
        "exit_code": code,
    }
    options.out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
