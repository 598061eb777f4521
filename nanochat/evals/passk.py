"""pass@k: the chance that at least one of k answers to a question is right, from n >= k sampled ones.

Source: Chen et al. 2021, "Evaluating Large Language Models Trained on Code", section 2.1.
"""

import math


def estimate_pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """The unbiased estimate 1 - C(n - c, k) / C(n, k).

    Raises ValueError where the numbers do not fit: 0 <= num_right <= num_samples and 1 <= k <= num_samples.

    >>> [round(estimate_pass_at_k(4, 1, k), 3) for k in (1, 2, 4)]
    [0.25, 0.5, 1.0]
    """
    if not 0 <= num_right <= num_samples:
        raise ValueError(f"num_right = {num_right} is not in 0 .. num_samples = {num_samples}")
    if not 1 <= k <= num_samples:
        raise ValueError(f"k = {k} is not in 1 .. num_samples = {num_samples}")
    return 1.0 - math.comb(num_samples - num_right, k) / math.comb(num_samples, k)
