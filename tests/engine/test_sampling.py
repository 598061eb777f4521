import pytest
import torch

from nanochat.engine.sampling import SamplingParams, penalize_repetition, sample_tokens

LOGITS = torch.tensor([2.0, 1.0, 0.5, -1.0, -3.0])


def distribution(params: SamplingParams, num_draws: int = 4000) -> torch.Tensor:
    """The probabilities that evenly spaced draws give, exact to 1 / num_draws."""
    draws = [(i + 0.5) / num_draws for i in range(num_draws)]
    chosen = sample_tokens(LOGITS.expand(num_draws, -1), [params] * num_draws, draws)
    return torch.bincount(torch.tensor(chosen), minlength=len(LOGITS)) / num_draws


def naive(temperature: float, keep: list[int]) -> torch.Tensor:
    probs = (LOGITS / temperature).softmax(0)
    kept = torch.zeros_like(probs)
    kept[keep] = probs[keep]
    return kept / kept.sum()


@pytest.mark.parametrize(
    ("params", "temperature", "keep"),
    [
        (SamplingParams(), 1.0, [0, 1, 2, 3, 4]),
        (SamplingParams(temperature=2.0), 2.0, [0, 1, 2, 3, 4]),
        (SamplingParams(top_k=2), 1.0, [0, 1]),
        (SamplingParams(top_k=99), 1.0, [0, 1, 2, 3, 4]),
        (SamplingParams(top_p=0.65), 1.0, [0, 1]),  # the most likely token has 0.609
        (SamplingParams(top_p=0.6), 1.0, [0]),
        (SamplingParams(top_p=1.0), 1.0, [0, 1, 2, 3, 4]),
        (SamplingParams(min_p=0.3), 1.0, [0, 1]),
        (SamplingParams(min_p=0.2, top_k=4), 1.0, [0, 1, 2]),
        (SamplingParams(top_k=3, top_p=0.9), 1.0, [0, 1, 2]),
        (SamplingParams(top_k=1), 1.0, [0]),
        (SamplingParams(temperature=0), 1.0, [0]),
        (SamplingParams(temperature=1e-30), 1.0, [0]),
    ],
)
def test_the_distribution_is_the_naive_one(params: SamplingParams, temperature: float, keep: list[int]) -> None:
    torch.testing.assert_close(distribution(params), naive(temperature, keep), atol=1e-3, rtol=0)


def test_rows_with_different_parameters_do_not_touch_each_other() -> None:
    options = [
        SamplingParams(),
        SamplingParams(temperature=0),
        SamplingParams(top_k=3),
        SamplingParams(top_p=0.5),
        SamplingParams(temperature=0.3),
        SamplingParams(temperature=0),
    ]
    logits = torch.randn(len(options), 50, generator=torch.Generator().manual_seed(0))
    draws = [0.1, 0.2, 0.3, 0.6, 0.8, 0.9]
    alone = [sample_tokens(logits[i : i + 1], [p], [draws[i]])[0] for i, p in enumerate(options)]
    assert sample_tokens(logits, options, draws) == alone


@pytest.mark.parametrize("temperature", [1e-30, 1e-38, 1e-40, 1e-45, 1e-46, 1e-300, 5e-324])
@pytest.mark.parametrize("other", [{}, {"top_k": 3}, {"top_p": 0.9}, {"min_p": 0.1}])
def test_a_temperature_of_nearly_nothing_takes_the_likeliest_token(temperature: float, other: dict) -> None:
    params = SamplingParams(temperature=temperature, **other)
    logits = torch.tensor([[-9.0, 1.0, 2.0, 0.5, -1.0], [0.0, 0.0, -40.0, 1e-3, 0.0]])
    for draw in (0.0, 0.5, 1 - 2**-24):
        assert sample_tokens(logits, [params] * 2, [draw] * 2) == [2, 3]


@pytest.mark.parametrize("temperature", [1e30, 1e38, 1e39, 1e308])
def test_a_huge_temperature_makes_all_tokens_alike_but_those_that_cannot_be(temperature: float) -> None:
    logits = torch.tensor([[float("-inf"), 5.0, -5.0, 0.0, float("-inf")]])
    chosen = [sample_tokens(logits, [SamplingParams(temperature=temperature)], [draw])[0] for draw in (0.1, 0.5, 0.9)]
    assert chosen == [1, 2, 3]


@pytest.mark.parametrize("params", [SamplingParams(top_p=1e-9), SamplingParams(top_p=5e-324), SamplingParams(min_p=1)])
@pytest.mark.parametrize("draw", [0.0, 0.5, 1 - 2**-24])
def test_the_narrowest_choice_is_the_likeliest_token(params: SamplingParams, draw: float) -> None:
    assert sample_tokens(LOGITS.flip(0)[None], [params], [draw]) == [4]


@pytest.mark.parametrize("penalty", [5e-324, 1e-46, 1e-38, 0.001, 1e30, 1e39, 1e308])
@pytest.mark.parametrize("num_seen", [1, 3, 6])
def test_any_penalty_leaves_numbers_to_choose_from(penalty: float, num_seen: int) -> None:
    logits = torch.tensor([20.0, -20.0, 0.0, 3.0, -1e30, 1e30])
    seen = torch.arange(6) < num_seen
    penalized = penalize_repetition(logits, seen, penalty)
    assert penalized.isfinite().all() and penalized[~seen].equal(logits[~seen])
    for params in (SamplingParams(), SamplingParams(temperature=0), SamplingParams(temperature=1e-30, top_p=0.5)):
        (token,) = sample_tokens(penalized[None], [params], [0.5])
        assert penalized[token] >= penalized.max() - (0 if params.temperature < 1 else 50)


@pytest.mark.parametrize("draw", [0.0, 1 - 2**-24])
@pytest.mark.parametrize("params", [SamplingParams(top_p=0.3), SamplingParams(min_p=0.9), SamplingParams()])
def test_the_outermost_draws_never_reach_an_impossible_token(draw: float, params: SamplingParams) -> None:
    logits = torch.full((1, 1000), -1e9)
    logits[0, 500:503] = torch.tensor([1.0, 0.99, 0.98])
    assert sample_tokens(logits, [params], [draw])[0] in (500, 501, 502)


def test_repetition_penalty_makes_seen_tokens_less_likely_whatever_their_sign() -> None:
    seen = torch.tensor([True, False, False, True, False])
    penalized = penalize_repetition(LOGITS, seen, 2.0)
    assert penalized.tolist() == [1.0, 1.0, 0.5, -2.0, -3.0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": 10**400},
        {"top_p": float("nan")},
        {"repetition_penalty": float("inf")},
        {"repetition_penalty": float("nan")},
        {"top_k": 0},
        {"top_p": 0},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"repetition_penalty": 0},
        {"max_new_tokens": 0},
        {"seed": -1},
    ],
)
def test_numbers_out_of_range_are_refused_by_name(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SamplingParams(**wrong)
