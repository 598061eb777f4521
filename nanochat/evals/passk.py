"""pass@k: the chance that at least one of k answers is right, from n answers of which c were.

Source: Chen et al. 2021, "Evaluating Large Language Models Trained on Code", equation 1.
"""


def estimate_pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """The unbiased estimate 1 - C(n - c, k) / C(n, k), as a product that cannot overflow.

    Raises ValueError if k is not in [1, num_samples] or num_right not in [0, num_samples].

    >>> estimate_pass_at_k(4, 1, 1), estimate_pass_at_k(4, 1, 4), round(estimate_pass_at_k(4, 2, 2), 4)
    (0.25, 1.0, 0.8333)
    """
    if not 1 <= k <= num_samples or not 0 <= num_right <= num_samples:
        raise ValueError(f"k = {k} of {num_samples} samples, {num_right} of them right")
    if num_samples - num_right < k:
        return 1.0
    all_wrong = 1.0
    for number in range(num_samples - num_right + 1, num_samples + 1):
        all_wrong *= 1 - k / number
    return 1 - all_wrong


def list_ks(num_samples: int) -> list[int]:
    """The k of pass@k that are worth a number: powers of two, and all answers.

    >>> list_ks(1), list_ks(10)
    ([1], [1, 2, 4, 8, 10])
    """
    powers = [2**power for power in range(num_samples.bit_length()) if 2**power < num_samples]
    return [*powers, num_samples]
