import itertools

import pytest

from nanochat.evals.passk import estimate_pass_at_k


@pytest.mark.parametrize("num_samples", [1, 2, 5, 7])
def test_the_estimate_is_the_share_of_draws_that_hold_a_right_answer(num_samples: int) -> None:
    for num_right in range(num_samples + 1):
        answers = [True] * num_right + [False] * (num_samples - num_right)
        for k in range(1, num_samples + 1):
            draws = list(itertools.combinations(answers, k))
            share = sum(map(any, draws)) / len(draws)
            assert estimate_pass_at_k(num_samples, num_right, k) == pytest.approx(share)


def test_many_samples_do_not_overflow() -> None:
    assert 0.99 < estimate_pass_at_k(10_000, 50, 1_000) < 1


@pytest.mark.parametrize(("num_samples", "num_right", "k"), [(3, 1, 0), (3, 1, 4), (3, 4, 1), (3, -1, 1)])
def test_impossible_counts_are_refused(num_samples: int, num_right: int, k: int) -> None:
    with pytest.raises(ValueError, match=f"k = {k} of {num_samples}"):
        estimate_pass_at_k(num_samples, num_right, k)
