"""The requests of the OpenAI-compatible API. What is not supported is refused by name, never ignored.

A field of OpenAI's that asks for nothing (`frequency_penalty: 0`, `tools: []`) is let through. Three fields are ours:
`top_k`, `min_p` and `repetition_penalty`.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError

from nanochat.web.errors import ApiError

MAX_MESSAGES = 1000
MAX_CHOICES = 16
MAX_STOPS = 4
MAX_PROMPTS = 256

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "logit_bias": (None, {}),
    "tools": (None, []),
    "tool_choice": (None, "none"),
    "functions": (None, []),
    "function_call": (None, "none"),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "best_of": (None, 1),
    "suffix": (None, ""),
    "store": (None, False),
    "metadata": (None, {}),
    "service_tier": (None, "auto", "default"),
}
"""OpenAI's fields that are not supported, with the values that ask for nothing."""

Text = Annotated[StrictStr, Field(max_length=1_000_000)]
Token = Annotated[StrictInt, Field(ge=0)]
Number = Annotated[float, Field(strict=True)]
"""An integer is one too; true and "1" are not."""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class StreamOptions(Strict):
    include_usage: StrictBool = False


class TextPart(Strict):
    type: Literal["text"]
    text: Text


class ChatMessage(Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart]
    name: StrictStr | None = None

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class Numbers(Strict):
    """How an answer is drawn; None leaves it to the server."""

    temperature: Number | None = Field(default=None, ge=0, le=100)
    top_p: Number | None = Field(default=None, gt=0, le=1)
    top_k: StrictInt | None = Field(default=None, ge=1, lt=2**31)
    min_p: Number | None = Field(default=None, ge=0, le=1)
    repetition_penalty: Number | None = Field(default=None, gt=0, le=100)
    seed: StrictInt | None = None


class _Sampled(Numbers):
    """What both kinds of request share."""

    model: StrictStr | None = None
    n: StrictInt | None = Field(default=None, ge=1, le=MAX_CHOICES)
    stop: StrictStr | list[StrictStr] | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    user: StrictStr | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """Raises ApiError where there are too many or an empty one."""
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        if len(stops) > MAX_STOPS or "" in stops:
            raise ApiError(400, f"stop: at most {MAX_STOPS} strings, none of them empty", "stop")
        return stops

    def check(self) -> None:
        """Raises ApiError where fields contradict each other."""
        if self.stream_options is not None and not self.stream:
            raise ApiError(400, "stream_options is only for stream = true", "stream_options")
        _ = self.stops


class ChatRequest(_Sampled):
    """Body of /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_tokens: StrictInt | None = Field(default=None, ge=1)
    max_completion_tokens: StrictInt | None = Field(default=None, ge=1)
    logprobs: StrictBool | None = None
    top_logprobs: StrictInt | None = Field(default=None, ge=0, le=20)

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    def check(self) -> None:
        super().check()
        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError(400, "top_logprobs is only for logprobs = true", "top_logprobs")
        if self.messages[-1].role != "user":
            raise ApiError(400, "the last message must be the user's: there is nothing to answer", "messages")


class CompletionRequest(_Sampled):
    """Body of /v1/completions: text or token ids to continue, one or several."""

    prompt: Text | list[Text] | list[Token] | list[list[Token]]
    max_tokens: StrictInt | None = Field(default=None, ge=0)
    logprobs: StrictInt | None = Field(default=None, ge=0, le=20)
    echo: StrictBool | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """Raises ApiError where there is none, or too many."""
        value: Any = self.prompt
        prompts = value if isinstance(value, list) and value and not isinstance(value[0], int) else [value]
        if prompts == [[]] or len(prompts) > MAX_PROMPTS:
            raise ApiError(400, f"prompt: from 1 to {MAX_PROMPTS} of them", "prompt")
        return prompts

    def check(self) -> None:
        super().check()
        _ = self.prompts
        if self.max_tokens == 0 and not self.echo:
            raise ApiError(400, "max_tokens = 0 is only for echo = true", "max_tokens")


def parse_request(kind: type[ChatRequest] | type[CompletionRequest], body: Any) -> Any:
    """Check a body. Raises ApiError, which names the field."""
    if not isinstance(body, dict):
        raise ApiError(400, "the body must be a JSON object")
    for name, values in NEUTRAL.items():
        if name in body and name not in kind.model_fields:
            if not any(body[name] == value and type(body[name]) is not bool or body[name] is value for value in values):
                raise ApiError(400, f"{name} is not supported by this server", name, "unsupported_parameter")
    try:
        request = kind.model_validate({key: value for key, value in body.items() if key not in NEUTRAL})
    except ValidationError as error:
        raise name_field(error) from None
    request.check()
    return request


def name_field(error: ValidationError) -> ApiError:
    """The first thing that is wrong, as a sentence."""
    found = error.errors(include_url=False, include_context=False)
    extra = next((item for item in found if item["type"] == "extra_forbidden"), None)
    item = extra or found[0]
    place = [str(part) for part in item["loc"]]  # pydantic names the branch of a union too
    name = ".".join(part for part in place if re.fullmatch(r"[a-z_0-9]+", part) and part not in ("str", "int"))[:200]
    if extra is not None:
        return ApiError(400, f"{name} is not supported by this server", name, "unsupported_parameter")
    return ApiError(400, f"{name}: {item['msg']}"[:500], name)
