"""The API as OpenAI's own client sees it."""

import asyncio
import json

import openai
import pytest
import torch

from nanochat.engine.sampling import penalize_repetition
from tests.engine.fakes import ScriptedModel
from tests.patience import PATIENCE_SECONDS
from tests.web.serving import TOKENIZER, Serving, serving, tiny_model

CALL = ["Let me see: ", "<|python_start|>", "2+2", "<|python_end|>", " It is 4."]
ASK = [{"role": "user", "content": "What is 2+2?"}]


def client_of(server: Serving, **options) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="unused", max_retries=0, timeout=PATIENCE_SECONDS, **options
    )


@pytest.fixture(scope="module")
def scripted():
    with serving(ScriptedModel(["Grüß ", "dich! <b>\x1b[31m"], context=512)) as server:
        yield server


@pytest.fixture(scope="module")
def tiny():
    with serving(tiny_model()) as server:
        yield server


def test_models_are_listed(tiny: Serving) -> None:
    client = client_of(tiny)
    (model,) = client.models.list().data
    assert model.id == "fake/sft@1" and client.models.retrieve("fake/sft@1").owned_by == "nanochat"
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-4'"):
        client.models.retrieve("gpt-4")


def test_an_answer_comes_whole_or_streamed(scripted: Serving) -> None:
    client = client_of(scripted)
    answer = client.chat.completions.create(model="fake/sft@1", messages=ASK)
    assert answer.choices[0].message.content == "Grüß dich! <b>"  # no escape sequence gets out
    assert answer.choices[0].finish_reason == "stop" and answer.object == "chat.completion"
    assert answer.usage.completion_tokens == len("Grüß dich! <b>\x1b[31m".encode()) + 1
    assert answer.usage.prompt_tokens == len("What is 2+2?") + 4
    chunks = list(
        client.chat.completions.create(
            model="nanochat", messages=ASK, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == "Grüß dich! <b>"
    assert [c.choices[0].finish_reason for c in chunks[:-1]][-1] == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage == answer.usage
    assert len({chunk.id for chunk in chunks}) == 1


def test_tool_calls_stand_beside_the_text() -> None:
    with serving(ScriptedModel(CALL, context=512)) as server:
        answer = server.post("/v1/chat/completions", {"messages": ASK}).json()
        message = answer["choices"][0]["message"]
        assert message["content"] == "Let me see:  It is 4."
        assert message["nanochat"] == {"tools": [{"expression": "2+2", "result": "4", "at": len("Let me see: ")}]}
        body = server.post("/v1/chat/completions", {"messages": ASK, "stream": True}).text
        events = [line.removeprefix("data: ") for line in body.splitlines() if line]
        assert events[-1] == "[DONE]"
        deltas = [json.loads(event)["choices"][0]["delta"] for event in events[:-1]]
        (tools,) = [d["nanochat"]["tools"] for d in deltas if "nanochat" in d]
        assert tools == [{"index": 0, **message["nanochat"]["tools"][0]}]


def test_a_conversation_goes_on_with_the_messages_that_the_client_gave() -> None:
    """The next prompt is what the model has read and said, token for token, its calls and their results among it."""
    with serving(ScriptedModel([*CALL, "<|python_start|>", "3*", "<|python_end|>", "!"], context=512)) as server:
        client = client_of(server)
        prompts = []
        render = server.service.render

        def keep(messages) -> list[int]:
            prompts.append(render(messages))
            return prompts[-1]

        server.service.render = keep  # type: ignore[method-assign]
        for is_stream in (False, True):
            messages: list = list(ASK)
            for _ in range(3):
                if is_stream:
                    with client.chat.completions.stream(model="nanochat", messages=messages) as stream:
                        answer = stream.until_done().get_final_completion()
                else:
                    answer = client.chat.completions.create(model="nanochat", messages=messages)
                assert answer.choices[0].message.content == "Let me see:  It is 4.!"
                messages.append(answer.choices[0].message)
                messages.append({"role": "user", "content": "And now?"})
        said = b"Let me see: <|python_start|>2+2<|python_end|><|output_start|>4<|output_end|> It is 4."
        said += b"<|python_start|>3*<|python_end|>!<|assistant_end|>"
        assert TOKENIZER.decode_bytes(prompts[-1]).count(said) == 2 and prompts[:3] == prompts[3:]


def test_a_stop_string_ends_the_answer(scripted: Serving) -> None:
    for stop in ("dich", ["never", "dich"]):
        choice = client_of(scripted).chat.completions.create(model="nanochat", messages=ASK, stop=stop).choices[0]
        assert (choice.message.content, choice.finish_reason) == ("Grüß ", "stop")


def test_several_answers_differ_and_a_seed_repeats_them(tiny: Serving) -> None:
    client = client_of(tiny)

    def ask(**options) -> list[str]:
        answer = client.chat.completions.create(
            model="nanochat", messages=ASK, n=3, temperature=1.5, max_completion_tokens=20, **options
        )
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        return [choice.message.content for choice in answer.choices]

    first = ask(seed=5)
    assert ask(seed=5) == first and len(set(first)) > 1
    assert ask(seed=-7) == ask(seed=-7) != first
    assert ask() != ask()
    streamed = ["", "", ""]
    for chunk in client.chat.completions.create(
        model="nanochat", messages=ASK, n=3, temperature=1.5, max_tokens=20, seed=5, stream=True
    ):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == first


def test_logprobs_are_the_models(tiny: Serving) -> None:
    answer = client_of(tiny).chat.completions.create(
        model="nanochat", messages=ASK, logprobs=True, top_logprobs=3, max_tokens=6, temperature=0
    )
    rows = answer.choices[0].logprobs.content
    assert rows and all(len(row.top_logprobs) == 3 for row in rows)
    for row in rows:
        assert row.logprob == row.top_logprobs[0].logprob <= 0 and row.token == row.top_logprobs[0].token
        assert bytes(row.bytes).decode(errors="replace") == row.token
    assert bytes(b for row in rows for b in row.bytes).decode(errors="replace") == answer.choices[0].message.content


def test_completions_echo_with_the_logprobs_of_the_naive_forward(tiny: Serving) -> None:
    prompts = [list(b"abcabc"), list(b"hello world")]
    answer = client_of(tiny).completions.create(
        model="nanochat", prompt=prompts, echo=True, logprobs=2, max_tokens=1, temperature=0
    )
    model = tiny_model()
    for choice, prompt in zip(answer.choices, prompts, strict=True):
        expected = model(torch.tensor([prompt]))[0].log_softmax(-1)
        own = choice.logprobs.token_logprobs
        assert own[0] is None and len(own) == len(prompt) + 1
        assert own[1 : len(prompt)] == pytest.approx(
            [expected[i, token].item() for i, token in enumerate(prompt[1:])], abs=1e-4
        )
        greedy = [
            max(top, key=top.get) == token
            for top, token in zip(choice.logprobs.top_logprobs[1:], choice.logprobs.tokens[1:], strict=True)
        ]
        assert greedy[: len(prompt) - 1] == [
            TOKENIZER.decode([int(expected[i].argmax())]) == chr(token) for i, token in enumerate(prompt[1:])
        ]
        assert "".join(choice.logprobs.tokens) == choice.text
        assert choice.logprobs.text_offset == [sum(map(len, choice.logprobs.tokens[:i])) for i in range(len(own))]
    scored = client_of(tiny).completions.create(model="nanochat", prompt="abc", echo=True, logprobs=0, max_tokens=0)
    assert scored.choices[0].text == "abc" and len(scored.choices[0].logprobs.token_logprobs) == 3
    assert scored.usage.completion_tokens == 0


def test_scoring_a_text_gets_one_logprob_more_than_it_has_tokens_even_where_the_answer_ends_at_once() -> None:
    model = tiny_model()
    model.bias[TOKENIZER.special_ids["<|assistant_end|>"]] = 1e3
    with serving(model) as server:
        options = {"model": "nanochat", "prompt": [list(b"abc")], "echo": True, "logprobs": 1, "max_tokens": 1}
        (whole,) = client_of(server).completions.create(**options).choices
        parts = [chunk.choices[0] for chunk in client_of(server).completions.create(**options, stream=True)]
    assert whole.text == "abc" and whole.finish_reason == "stop"
    assert whole.logprobs.tokens == ["a", "b", "c", "<|assistant_end|>"]
    assert whole.logprobs.token_logprobs[3] == pytest.approx(0) and whole.logprobs.text_offset == [0, 1, 2, 3]
    assert [v for p in parts if p.logprobs for v in p.logprobs.token_logprobs] == whole.logprobs.token_logprobs
    assert "".join(part.text for part in parts) == "abc"


def test_completions_stream_what_they_give_whole(tiny: Serving) -> None:
    client = client_of(tiny)
    options = {"model": "nanochat", "prompt": "abc", "max_tokens": 12, "temperature": 1, "seed": 3, "logprobs": 1}
    whole = client.completions.create(**options, echo=True).choices[0]
    parts = [chunk.choices[0] for chunk in client.completions.create(**options, echo=True, stream=True)]
    assert "".join(part.text for part in parts) == whole.text
    assert [v for p in parts if p.logprobs for v in p.logprobs.token_logprobs] == whole.logprobs.token_logprobs
    assert [v for p in parts if p.logprobs for v in p.logprobs.text_offset] == whole.logprobs.text_offset


def test_the_async_client_gets_many_answers_at_once(tiny: Serving) -> None:
    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{tiny.url}/v1", api_key="x", max_retries=0) as client:

            async def ask(seed: int) -> str:
                stream = await client.chat.completions.create(
                    model="nanochat", messages=ASK, seed=seed, temperature=1.2, max_tokens=30, stream=True
                )
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return await asyncio.gather(*(ask(seed % 8) for seed in range(24)))

    answers = asyncio.run(ask_all())
    assert all(answers[seed] == answers[seed % 8] for seed in range(24)) and len(set(answers)) > 4


@pytest.mark.parametrize(
    ("changes", "status", "param", "said"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, 400, "tools", "not supported"),
        ({"logit_bias": {"5": 1}}, 400, "logit_bias", "not supported"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format", "not supported"),
        ({"temprature": 1}, 400, "temprature", "not supported"),
        ({"temperature": -1}, 400, "temperature", "greater than or equal to 0"),
        ({"top_p": 0}, 400, "top_p", "greater than 0"),
        ({"n": 1000}, 400, "n", "less than or equal to"),
        ({"stop": ["a"] * 5}, 400, "stop", "at most 4"),
        ({"stop": ""}, 400, "stop", "empty"),
        ({"messages": []}, 400, "messages", "at least 1"),
        ({"messages": [{"role": "x", "content": "x"}]}, 400, "messages.0.role", "Input should be"),
        ({"messages": [*ASK, {"role": "tool", "content": "x"}]}, 400, "messages.1.role", "into a message of the user"),
        (
            {"messages": [*ASK, {"role": "assistant", "tool_calls": [{"id": "1"}]}]},
            400,
            "messages.1.tool_calls",
            "leave the call out",
        ),
        ({"messages": [{"role": "user", "content": None}]}, 400, "messages.0.content", "a message of the user needs"),
        ({"messages": [{"role": "system"}]}, 400, "messages.0.content", "a message of the system needs text"),
        ({"messages": [{"role": "assistant", "audio": {"id": "x"}}]}, 400, "messages.0.audio", "not supported"),
        ({"messages": [ASK[0] | {"nanochat": {"tools": []}}]}, 400, "messages.0.nanochat", "only answers call"),
        ({"messages": [5]}, 400, "messages.0", ""),
        ({"reasoning_effort": "high"}, 400, "reasoning_effort", "not supported"),
        ({"store": True}, 400, "store", "not supported"),
        ({"metadata": {"a": "b"}}, 400, "metadata", "not supported"),
        ({"best_of": True}, 400, "best_of", "not supported"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, 400, "stream_options", "not supported"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, 400, "messages", "the last message must be"),
        ({"messages": [{"role": "assistant", "content": "x"}, *ASK]}, 400, "messages", "the first message"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages.0.content", ""),
        ({"messages": [{"role": "user", "content": "x" * 500}]}, 400, "messages", "the context is 128 tokens"),
        ({"max_tokens": 1000}, 400, "messages", "max_tokens = 1000"),
        ({"max_tokens": 0}, 400, "max_tokens", "greater than or equal to 1"),
        ({"model": "gpt-4"}, 404, "model", "there is no model"),
        ({"top_logprobs": 2}, 400, "top_logprobs", "logprobs = true"),
        ({"stream_options": {"include_usage": True}}, 400, "stream_options", "stream = true"),
    ],
)
def test_what_is_refused_is_named(tiny: Serving, changes: dict, status: int, param: str, said: str) -> None:
    answer = tiny.post("/v1/chat/completions", {"model": "nanochat", "messages": ASK} | changes)
    error = answer.json()["error"]
    assert answer.status_code == status and error["param"].startswith(param) and said in error["message"], error
    assert error["type"] == "invalid_request_error"


NOTHING = {
    "tools": [], "tool_choice": "auto", "parallel_tool_calls": True, "function_call": "none", "functions": [],
    "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "store": False, "metadata": {},
    "response_format": {"type": "text"}, "modalities": ["text"], "reasoning_effort": None, "verbosity": None,
    "service_tier": "auto", "stream_options": {"include_usage": False, "include_obfuscation": False}, "audio": None,
    "prediction": None, "web_search_options": None, "prompt_cache_key": "a", "safety_identifier": "b", "user": "me",
    "seed": None, "stop": None, "n": None, "temperature": None, "max_completion_tokens": None, "stream": False,
    "logprobs": False, "top_logprobs": 0, "chat_id": None, "best_of": 1, "suffix": "", "extra": {"a": [None, ""]},
}  # fmt: skip


@pytest.mark.parametrize("field", [*NOTHING, "all"])
def test_what_asks_for_nothing_is_let_through(tiny: Serving, field: str) -> None:
    asked = NOTHING if field == "all" else {field: NOTHING[field]}
    for path, prompt in (("chat/completions", {"messages": ASK}), ("completions", {"prompt": "abc"})):
        answer = tiny.post(f"/v1/{path}", {"max_tokens": 2} | prompt | asked)
        assert answer.status_code == 200, answer.text


def test_messages_with_fields_that_say_nothing_are_let_through(tiny: Serving) -> None:
    nothing = {"refusal": None, "annotations": [], "audio": None, "tool_calls": [], "function_call": None, "name": None}
    of_litellm = {"provider_specific_fields": {"refusal": None, "nanochat": {"tools": [{"expression": "1+"}]}}}
    parts = [{"type": "text", "text": "hi", "annotations": [], "cache_control": None}]
    answers = [{"content": None}, {}, nothing | {"content": "x"}, {"content": "x"} | of_litellm, {"content": parts}]
    for answer in answers:
        messages = [*ASK, {"role": "assistant"} | answer, {"role": "user", "content": "?", "tool_calls": None}]
        done = tiny.post("/v1/chat/completions", {"messages": messages, "max_tokens": 2})
        assert done.status_code == 200, (answer, done.text)


def test_a_prompt_of_null_continues_the_beginning_of_a_text(tiny: Serving) -> None:
    body = {"prompt": None, "max_tokens": 3, "temperature": 0}
    assert tiny.post("/v1/completions", body).json()["usage"]["prompt_tokens"] == 1
    assert tiny.post("/v1/completions", {"max_tokens": 3}).status_code == 400


def test_system_prompts_and_messages_in_a_row_are_joined(tiny: Serving) -> None:
    def count(messages: list) -> int:
        body = {"messages": messages, "max_tokens": 1}
        return tiny.post("/v1/chat/completions", body).json()["usage"]["prompt_tokens"]

    alone = count([{"role": "user", "content": "S\n\nA\n\nB"}])
    assert count([{"role": "system", "content": "S"}, *({"role": "user", "content": c} for c in "AB")]) == alone
    parts = [{"type": "text", "text": "A\n\n"}, {"type": "text", "text": "B"}]
    assert count([{"role": "developer", "content": "S"}, {"role": "user", "content": parts}]) == alone


def test_special_tokens_that_are_typed_stay_text(tiny: Serving) -> None:
    special = "".join(TOKENIZER.special_ids)
    body = {
        "messages": [{"role": "system", "content": special[:60]}, {"role": "user", "content": "x"}],
        "max_tokens": 1,
    }
    usage = tiny.post("/v1/chat/completions", body).json()["usage"]
    assert usage["prompt_tokens"] == 60 + 2 + 1 + 4  # as many as bytes, and the four markers


def test_a_repetition_penalty_is_applied(tiny: Serving) -> None:
    prompt = list(b"abcabc")
    body = {"prompt": prompt, "max_tokens": 1, "temperature": 0, "repetition_penalty": 5.0}
    model = tiny_model()
    logits = model(torch.tensor([prompt]))[0, -1]
    seen = torch.zeros(logits.shape[0], dtype=torch.bool)
    seen[prompt] = True
    expected = int(penalize_repetition(logits, seen, 5.0).argmax())
    text = tiny.post("/v1/completions", body).json()["choices"][0]["text"]
    assert text == (TOKENIZER.decode([expected]) if expected < 256 else "")


def test_a_base_model_completes_and_does_not_chat() -> None:
    with serving(tiny_model(), is_chat=False) as server:
        assert "is a base model" in server.post("/v1/chat/completions", {"messages": ASK}).json()["error"]["message"]
        assert server.post("/v1/completions", {"prompt": "abc"}).status_code == 200
