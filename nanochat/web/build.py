"""Put a server together: models become engines with room for their keys and values, and those a service."""

from collections.abc import Sequence

import torch

from nanochat.device_memory import read_memory
from nanochat.engine.engine import Engine
from nanochat.engine.kv_cache import cache_bytes
from nanochat.engine.sampling import SamplingParams
from nanochat.engine.tool_loop import ToolLoop
from nanochat.errors import CapacityError
from nanochat.tokenizer.bpe import Tokenizer
from nanochat.web.service import Limits, Service
from nanochat.web.worker import EngineWorker, Pool

PREFILL_TOKENS = 256
"""Of prompts, read in one step: what the answers of others may be held up by."""
MEMORY_SHARE = 0.9
"""Of what is free that keys and values may take; the rest is for a step's own tensors."""


def build_service(
    models: Sequence,
    tokenizer: Tokenizer,
    name: str,
    *,
    num_slots: int,
    max_context: int | None,
    max_waiting: int,
    default: SamplingParams,
    limits: Limits | None = None,
    is_chat: bool = True,
) -> Service:
    """A service over copies of one model, a device each. Raises CapacityError where their caches do not fit."""
    config = models[0].config
    context = min(max_context or config.context, config.context)
    for model in models:
        check_room(model, num_slots, context)

    def engine_maker(model):
        return lambda: Engine(
            model,
            num_slots,
            context,
            ToolLoop.from_tokenizer(tokenizer),
            eos_ids=(tokenizer.special_ids["<|assistant_end|>"], tokenizer.bos_id),
            prefill_tokens=PREFILL_TOKENS,
        )

    pool = Pool([EngineWorker(engine_maker(model), max_waiting) for model in models])
    return Service(pool, tokenizer, name, context, default, limits, is_chat)


def check_room(model, num_slots: int, max_context: int) -> None:
    """Raise CapacityError where the keys and values of so many slots do not fit beside the model."""
    config, device = model.config, next(model.parameters()).device
    dtype = getattr(model, "compute_dtype", torch.float32)
    needed = cache_bytes(config.n_layer, config.n_kv_head, config.head_dim, num_slots, max_context, dtype)
    free = int(read_memory(device).free * MEMORY_SHARE)
    if needed > free:
        fitting = max(1, num_slots * free // needed)
        raise CapacityError(
            f"{num_slots} slots of {max_context:,} tokens need {needed / 1e9:.1f} GB of keys and values; "
            f"{free / 1e9:.1f} GB of {device} are free",
            f"nanochat serve --slots {fitting}",
        )
