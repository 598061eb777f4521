"""Schedules: pure functions of the progress or the step. Knows neither optimizer nor loop."""

MUON_MOMENTUM = (0.85, 0.95)  # from, to: product facts, "Optimization"
MUON_MOMENTUM_STEPS = 300


def lr_multiplier(progress: float, warmup: float, warmdown: float) -> float:
    """Multiplier of the base rates at `progress` in [0, 1]: linear up, constant, linear to 0.

    warmup, warmdown: shares of the whole, each in [0, 1]; where they overlap the smaller multiplier counts.

    >>> [round(lr_multiplier(p, warmup=0.1, warmdown=0.2), 3) for p in (0.0, 0.05, 0.5, 0.8, 0.9, 1.0)]
    [0.0, 0.5, 1.0, 1.0, 0.5, 0.0]
    """
    rising = 1.0 if warmup == 0 else progress / warmup
    falling = 1.0 if warmdown == 0 else (1.0 - progress) / warmdown
    return max(0.0, min(1.0, rising, falling))


def muon_momentum(step: int) -> float:
    """Muon's momentum at a step: 0.85 rising linearly to 0.95 over the first 300 steps.

    >>> [round(muon_momentum(step), 3) for step in (0, 150, 300, 1000)]
    [0.85, 0.9, 0.95, 0.95]
    """
    start, end = MUON_MOMENTUM
    share = min(1.0, step / MUON_MOMENTUM_STEPS)
    return (1.0 - share) * start + share * end
