import itertools

import pytest

from nanochat.evals.passk import estimate_pass_at_k


@pytest.mark.parametrize("num_samples", [1, 3, 6])
def test_it_is_the_share_of_all_choices_of_k_that_hold_a_right_answer(num_samples: int) -> None:
    for num_right in range(num_samples + 1):
        verdicts = [place < num_right for place in range(num_samples)]
        for k in range(1, num_samples + 1):
            choices = [any(choice) for choice in itertools.combinations(verdicts, k)]
            assert estimate_pass_at_k(num_samples, num_right, k) == pytest.approx(sum(choices) / len(choices))


@pytest.mark.parametrize(("num_samples", "num_right", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5)])
def test_numbers_that_do_not_fit_are_refused(num_samples: int, num_right: int, k: int) -> None:
    with pytest.raises(ValueError, match="is not in"):
        estimate_pass_at_k(num_samples, num_right, k)
