from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.engine.engine import Completion, Engine, Request, complete, generate
from nanochat.engine.sampling import SamplingParams, penalize_repetition
from nanochat.engine.tool_loop import ToolLoop, ToolState
from tests.engine.fakes import TinyModel

GREEDY = SamplingParams(temperature=0, max_new_tokens=12)

# A vocabulary of 24: digits, +, -, (, some letters, then the tools' four tokens. An end is what a test says it is.
CHARS = "0123456789+-(abcdefg<>|/"
START, END, OUTPUT_START, OUTPUT_END = 20, 21, 22, 23
LOOP = ToolLoop(
    START,
    END,
    OUTPUT_START,
    OUTPUT_END,
    encode=lambda text: [CHARS.index(c) for c in text],
    decode=lambda ids: "".join(CHARS[i] for i in ids),
)


def naive_greedy(model, prompt: list[int], num_new: int, eos_ids=(), penalty: float = 1.0) -> list[int]:
    """The definition: a whole forward pass for every token."""
    ids = list(prompt)
    for _ in range(num_new):
        logits = model(torch.tensor([ids]))[0, -1]
        seen = torch.zeros(logits.shape[0], dtype=torch.bool)
        seen[ids] = True
        ids.append(int(penalize_repetition(logits, seen, penalty).argmax()))
        if ids[-1] in eos_ids:
            break
    return ids[len(prompt) :]


def run_all(engine: Engine) -> dict:
    answers: dict = {}
    while engine.num_active:
        for event in engine.step():
            answers.setdefault(event.request_id, []).append(event)
    return answers


@pytest.mark.parametrize("n_kv_head", [1, 2, 4])
def test_cached_decoding_of_prompts_of_many_lengths_equals_the_naive_forward(n_kv_head: int) -> None:
    model = TinyModel(n_kv_head=n_kv_head)
    prompts = [[3], [1, 2, 3, 4, 5, 6, 7], [5, 5], list(range(20)), [9, 8, 7]]
    engine = Engine(model, num_slots=3)
    assert generate(engine, prompts, GREEDY) == [naive_greedy(model, prompt, 12) for prompt in prompts]


def test_cached_decoding_with_a_repetition_penalty_equals_the_naive_forward() -> None:
    model = TinyModel()
    params = SamplingParams(temperature=0, max_new_tokens=12, repetition_penalty=3.0)
    answers = generate(Engine(model, num_slots=2), [[1, 2], [3]], params)
    assert answers == [naive_greedy(model, [1, 2], 12, penalty=3.0), naive_greedy(model, [3], 12, penalty=3.0)]
    assert answers[0] != naive_greedy(model, [1, 2], 12)


def test_a_shared_beginning_is_computed_once_and_changes_nothing() -> None:
    model = TinyModel()
    beginning = [i * 7 % 20 for i in range(30)]
    prompts = [[*beginning, 1, 2], [*beginning, 1, 2], [*beginning, 3, 4, 5], beginning]
    expected = [naive_greedy(model, prompt, 12) for prompt in prompts]
    model.num_positions_computed = 0
    assert generate(Engine(model, num_slots=4), prompts, GREEDY) == expected
    # The first prompt, then what differs: the last token of a prompt always takes a step of its own.
    assert model.num_positions_computed == 31 + 0 + 2 + 0 + 12 * 4


def test_a_short_prompt_that_is_wholly_shared_is_computed_once() -> None:
    model = TinyModel()
    expected = naive_greedy(model, [1, 2, 3, 4], 12)
    model.num_positions_computed = 0
    assert generate(Engine(model, num_slots=3), [[1, 2, 3, 4]] * 5, GREEDY) == [expected] * 5
    assert model.num_positions_computed == 3 + 12 * 5


def test_the_next_turn_of_a_conversation_computes_only_what_is_new() -> None:
    model = TinyModel()
    engine = Engine(model, num_slots=1)
    prompt = [i * 5 % 20 for i in range(20)]
    answer = generate(engine, [prompt], GREEDY)[0]
    longer = [*prompt, *answer, 1, 2, 3]
    expected = naive_greedy(model, longer, 12)
    model.num_positions_computed = 0
    assert generate(engine, [longer], GREEDY) == [expected]
    assert model.num_positions_computed == 3 + 12  # the answer's last token was never fed back, and 1, 2 are new


def test_answers_end_with_a_stop_token_of_the_engine_or_of_the_request() -> None:
    model = TinyModel()
    free = naive_greedy(model, [1, 2], 12)
    stop = free[5]
    first = free.index(stop)
    by_engine = complete(Engine(model, 1, eos_ids=[stop]), [[1, 2]], GREEDY)[0]
    params = SamplingParams(temperature=0, max_new_tokens=12, stop_ids=(stop,))
    by_request = complete(Engine(model, 1), [[1, 2]], params)[0]
    assert by_engine == by_request == Completion(free[: first + 1], [False] * (first + 1), "stop")
    assert generate(Engine(model, 1), [[1, 2]], params) == [free[:first]]


def test_a_full_context_ends_the_answer_with_length() -> None:
    model = TinyModel(context=10)
    answer = complete(Engine(model, 2), [[1] * 7, [1] * 9], SamplingParams(temperature=0))
    assert [(len(a.ids), a.finish) for a in answer] == [(3, "length"), (1, "length")]
    assert answer[0].ids == naive_greedy(model, [1] * 7, 3)


def test_requests_beyond_the_slots_wait_and_get_the_same_answers() -> None:
    model = TinyModel()
    prompts = [[i % 20, (3 * i) % 20] for i in range(9)]
    params = [SamplingParams(seed=i, max_new_tokens=3 + i) for i in range(9)]
    wide, narrow = generate(Engine(model, 9), prompts, params), generate(Engine(model, 2), prompts, params)
    assert wide == narrow
    assert [len(answer) for answer in wide] == [3 + i for i in range(9)]


def test_equal_prompts_get_different_answers_and_the_same_ones_again() -> None:
    model = TinyModel()
    answers = generate(Engine(model, 4), [[1, 2]] * 4, SamplingParams(max_new_tokens=12))
    assert len(set(map(tuple, answers))) == 4
    assert generate(Engine(model, 2), [[1, 2]] * 4, SamplingParams(max_new_tokens=12)) == answers


@pytest.mark.parametrize("prompt", [[], [1] * 64, [24], [-1]])
def test_prompts_that_cannot_be_continued_are_refused(prompt: list[int]) -> None:
    with pytest.raises(ValueError, match="prompt"):
        Engine(TinyModel(), 1).add(Request(0, prompt))


def test_a_request_id_in_use_is_refused_and_free_again_afterwards() -> None:
    engine = Engine(TinyModel(), 1)
    engine.add(Request("a", [1], GREEDY))
    with pytest.raises(ValueError, match="already active"):
        engine.add(Request("a", [1], GREEDY))
    run_all(engine)
    engine.add(Request("a", [1], GREEDY))


def test_adding_and_cancelling_a_request_looks_at_no_other_one_that_waits() -> None:
    class Name(str):
        num_compared = 0
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            Name.num_compared += 1
            return str.__eq__(self, other)

    engine = Engine(TinyModel(), 1)
    for number in range(1000):
        engine.add(Request(Name(number), [1], GREEDY))
    assert all(engine.cancel(Name(number)) for number in reversed(range(1000)))
    assert Name.num_compared < 10_000 and engine.num_active == 0


def test_cancelling_reports_once_and_frees_the_slot() -> None:
    engine = Engine(TinyModel(), 1)
    engine.add(Request("a", [1], GREEDY))
    engine.add(Request("b", [2], GREEDY))
    engine.step()
    assert engine.cancel("a") and engine.cancel("b") and not engine.cancel("a")
    assert engine.num_active == 0
    assert [(e.request_id, e.token, e.finish) for e in engine.step()] == [
        ("a", None, "cancelled"),
        ("b", None, "cancelled"),
    ]
    assert engine.step() == []


def test_generation_leaves_the_model_trainable() -> None:
    model = TinyModel()
    generate(Engine(model, 1), [[1, 2]], GREEDY)
    model(torch.tensor([[1, 2]])).sum().backward()
    assert model.head.grad is not None


@pytest.mark.parametrize(
    ("tokens", "forced"),
    [
        ([START, 2, 10, 2, END], [OUTPUT_START, 4, OUTPUT_END]),
        ([START, START, 2, END], [OUTPUT_START, 2, OUTPUT_END]),
        ([START, 13, 10, END], []),  # a + is no arithmetic
        ([START, END], []),
        ([2, 10, 2, END], []),
        ([START, 2, END, 3, END], [OUTPUT_START, 2, OUTPUT_END]),
        ([START, *[1] * 200, END], []),
        ([START, *[1] * 201, END], []),
    ],
)
def test_a_tool_call_forces_its_result(tokens: list[int], forced: list[int]) -> None:
    state = ToolState(LOOP)
    assert [t for token in tokens for t in state.observe(token)] == forced


def test_a_call_that_is_too_long_is_dropped_before_the_tool_sees_it() -> None:
    calls: list[str] = []
    state = ToolState(ToolLoop(START, END, OUTPUT_START, OUTPUT_END, LOOP.encode, LOOP.decode, calls.append, 5))
    for token in [START, *[1] * 6, END, START, *[1] * 5, END]:
        state.observe(token)
    assert calls == ["11111"]


BEGINNINGS = [[], [i * 7 % 20 for i in range(18)], [i * 7 % 20 for i in range(9)] + [i * 3 % 20 for i in range(12)]]
requests = st.tuples(
    st.builds(
        lambda beginning, end: (BEGINNINGS[beginning] + end)[:24],
        st.integers(0, 2),
        st.lists(st.integers(0, 23), min_size=1, max_size=24),
    ),
    st.builds(
        SamplingParams,
        temperature=st.sampled_from([0, 0.7, 1.5]),
        top_k=st.sampled_from([None, 1, 5]),
        top_p=st.sampled_from([None, 0.8]),
        min_p=st.sampled_from([None, 0.05]),
        repetition_penalty=st.sampled_from([1.0, 1.3]),
        seed=st.integers(0, 99),
        max_new_tokens=st.integers(1, 30),
        stop_ids=st.sampled_from([(), (7,)]),
        logprobs=st.sampled_from([None, None, 0, 3]),
        prompt_logprobs=st.sampled_from([False, False, True]),
    ),
)
actions = st.lists(
    st.one_of(requests, st.just("step"), st.just("step"), st.tuples(st.just("cancel"), st.integers(0, 9))), max_size=40
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(actions, st.integers(1, 4), st.sampled_from([None, 1, 5]))
def test_whatever_the_neighbours_do_a_request_gets_what_it_gets_alone(
    actions: list, num_slots: int, prefill_tokens: int | None
) -> None:
    model = TinyModel(context=32, favoured=(START, END))
    engine = Engine(model, num_slots, tool_loop=LOOP, eos_ids=[19], prefill_tokens=prefill_tokens)
    asked, answers = {}, {}

    def step() -> None:
        for event in engine.step():
            assert not answers[event.request_id] or answers[event.request_id][-1].finish is None
            answers[event.request_id].append(event)

    for action in actions:
        if action == "step":
            step()
        elif action[0] == "cancel":
            engine.cancel(action[1])
        else:
            asked[len(asked)] = action
            answers[len(asked) - 1] = []
            engine.add(Request(len(asked) - 1, *action))
    while engine.num_active:
        step()
    step()  # the last cancellations
    for request_id, (prompt, params) in asked.items():
        lonely = Engine(model, 1, tool_loop=LOOP, eos_ids=[19])
        lonely.add(Request(request_id, prompt, params))
        expected, got = run_all(lonely)[request_id], answers[request_id]
        assert got[-1].finish is not None
        if got[-1].finish == "cancelled":
            got = got[:-1]
        else:
            assert len(got) == len(expected)
        for event, other in zip(got, expected, strict=False):
            assert replace(event, logprob=None, prompt=None) == replace(other, logprob=None, prompt=None)
            assert_alike([event.logprob, *(event.prompt or [])], [other.logprob, *(other.prompt or [])])


def assert_alike(first: list, second: list) -> None:
    """The same log-probabilities but for rounding."""
    assert [f and f.token for f in first] == [s and s.token for s in second]
    for one, other in zip(first, second, strict=True):
        if one is not None:
            assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
            assert [value for _, value in one.top] == pytest.approx([value for _, value in other.top], abs=1e-4)


@pytest.mark.parametrize("prefill_tokens", [None, 4])
def test_logprobs_are_those_of_the_naive_forward(prefill_tokens: int | None) -> None:
    model, prompt = TinyModel(), [i * 7 % 20 for i in range(19)]
    engine = Engine(model, 2, prefill_tokens=prefill_tokens)
    generate(engine, [prompt], GREEDY)  # a beginning that must not be taken over: its states are wanted
    engine.add(Request("a", prompt, replace(GREEDY, temperature=0.7, top_k=2, logprobs=3, prompt_logprobs=True)))
    events = run_all(engine)["a"]
    tokens = [event.token for event in events]
    expected = model(torch.tensor([[*prompt, *tokens]]))[0].log_softmax(-1)
    of_prompt = events[0].prompt
    assert of_prompt[0] is None and [p.token for p in of_prompt[1:]] == prompt[1:]
    assert all(event.prompt is None for event in events[1:])
    for place, found in enumerate([*of_prompt, *(event.logprob for event in events)]):
        if place:
            own = expected[place - 1]
            assert found.logprob == pytest.approx(own[found.token].item(), abs=1e-4)
            assert [token for token, _ in found.top] == own.topk(3).indices.tolist()


def test_a_long_prompt_does_not_hold_up_the_answers_of_others() -> None:
    model = TinyModel()
    engine = Engine(model, 3, prefill_tokens=4)
    engine.add(Request("short", [1, 2], replace(GREEDY, max_new_tokens=20)))
    engine.step()
    engine.add(Request("long", [i % 20 for i in range(30)], GREEDY))
    engine.add(Request("next", [5, 6], GREEDY))
    seen = []
    for _ in range(12):
        model.num_positions_computed = 0
        seen.append({event.request_id for event in engine.step()})
        assert model.num_positions_computed <= 4 + 3
    assert all("short" in ids for ids in seen)
    assert [("long" in ids, "next" in ids) for ids in seen] == [(False, False)] * 7 + [(True, True)] * 5


def test_as_many_conversations_as_slots_go_on_where_they_were() -> None:
    model = TinyModel(context=200)
    engine = Engine(model, num_slots=4)
    turns = [[i * (3 + 2 * number) % 20 for i in range(20)] for number in range(4)]
    for round_number in range(3):
        for number in (0, 2, 1, 3):
            prompt, model.num_positions_computed = turns[number], 0
            (answer,) = generate(engine, [prompt], GREEDY)
            new = (
                len(prompt) - 1 if round_number == 0 else 3
            )  # the answer's last token, which was not fed back, 1 and 2
            assert model.num_positions_computed == new + 12, (round_number, number)
            assert answer == naive_greedy(model, prompt, 12)
            turns[number] = [*prompt, *answer, 1, 2, 3]


def test_a_greeting_in_common_takes_no_conversation_away() -> None:
    model = TinyModel(context=200)
    engine = Engine(model, num_slots=2)
    greeting = [i * 7 % 20 for i in range(18)]
    first = [*greeting, *(i * 3 % 20 for i in range(40))]
    generate(engine, [first], GREEDY)
    model.num_positions_computed = 0
    generate(engine, [[*greeting, 3, 4]], GREEDY)
    assert model.num_positions_computed == 1 + 12
    model.num_positions_computed = 0
    generate(engine, [[*first, 1]], GREEDY)
    assert model.num_positions_computed == 12


def test_tool_calls_happen_in_random_runs_too() -> None:
    """Guards the property above: without forced tokens it would say nothing about them."""
    engine = Engine(TinyModel(context=32, favoured=(START, END)), 8, tool_loop=LOOP)
    answers = complete(engine, [[i] for i in range(20)], SamplingParams(max_new_tokens=30))
    assert sum(any(answer.forced) for answer in answers) >= 5
