"""The requests of the OpenAI-compatible API. What is not supported is refused by name, never ignored.

A field that asks for nothing (`tools: []`) is let through, see `neutral.py`. Ours are `top_k`, `min_p` and
`repetition_penalty` of a request, and `nanochat` of a message.
"""

import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError

from nanochat.conversation import Part
from nanochat.web.errors import ApiError
from nanochat.web.neutral import drop_neutral, drop_neutral_of_message

MAX_MESSAGES = 1000
MAX_CHOICES = 16
MAX_STOPS = 4
MAX_PROMPTS = 256

Text = Annotated[StrictStr, Field(max_length=1_000_000)]
Token = Annotated[StrictInt, Field(ge=0)]
Number = Annotated[float, Field(strict=True)]
"""An integer is one too; true and "1" are not."""
T = TypeVar("T")
Many = Annotated[list[T], Field(fail_fast=True)]
"""One thing that is wrong in it is enough: a million explanations take a minute."""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class StreamOptions(Strict):
    include_usage: StrictBool | None = None


class TextPart(Strict):
    type: Literal["text"]
    text: Text


class CalledTool(Strict):
    """A call that an answer made. at: before which character of the text. index: which call, in a stream."""

    expression: Text
    result: Text | None = None
    at: StrictInt = Field(default=0, ge=0)
    index: StrictInt | None = None


class OwnFields(Strict):
    tools: Many[CalledTool] = Field(default_factory=list)


class ChatMessage(Strict):
    """nanochat: what this server says beside the text of an answer, for answers that come back."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Many[TextPart]
    name: StrictStr | None = None
    nanochat: OwnFields | None = None

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)

    @property
    def parts(self) -> list[Part]:
        """The text, with the calls of tools where they were made."""
        text, start = self.text, 0
        parts: list[Part] = []
        for call in sorted(self.nanochat.tools if self.nanochat else (), key=lambda call: call.at):
            parts += [Part("text", text[start : call.at]), Part("python", call.expression)]
            parts += [Part("python_output", call.result)] if call.result is not None else []
            start = call.at
        return [part for part in (*parts, Part("text", text[start:])) if part.text]


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
    stop: StrictStr | Many[StrictStr] | None = None
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
        if self.stream_options is not None and self.stream_options.include_usage and not self.stream:
            raise ApiError(400, "stream_options is only for stream = true", "stream_options")
        _ = self.stops


class ChatRequest(_Sampled):
    """Body of /v1/chat/completions."""

    messages: Many[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
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
        for place, message in enumerate(self.messages):
            if message.nanochat is not None and message.role != "assistant":
                raise ApiError(400, "nanochat: only answers call tools", f"messages.{place}.nanochat")
        if self.messages[-1].role != "user":
            raise ApiError(400, "the last message must be the user's: there is nothing to answer", "messages")


class CompletionRequest(_Sampled):
    """Body of /v1/completions: text or token ids to continue, one or several."""

    prompt: Text | Many[Text] | Many[Token] | Many[Many[Token]] | None
    """None: a text that begins with nothing."""
    max_tokens: StrictInt | None = Field(default=None, ge=0)
    logprobs: StrictInt | None = Field(default=None, ge=0, le=20)
    echo: StrictBool | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """Raises ApiError where there is none, or too many."""
        value: Any = "" if self.prompt is None else self.prompt
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
    body = drop_neutral(body, kind.model_fields)
    if isinstance(options := body.get("stream_options"), dict):
        body["stream_options"] = drop_neutral(options, StreamOptions.model_fields)
    if kind is ChatRequest and isinstance(messages := body.get("messages"), list):
        fields = ChatMessage.model_fields
        body["messages"] = [drop_neutral_of_message(message, i, fields) for i, message in enumerate(messages)]
    try:
        request = kind.model_validate(body)
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
