"""What the page may ask for over its socket: one JSON object a frame, checked before anything is done."""

from typing import Annotated, Literal

from pydantic import Field, StrictInt, StrictStr, TypeAdapter, ValidationError

from nanochat.web.body import parse_json
from nanochat.web.errors import ApiError
from nanochat.web.schema import Numbers, Strict, Text, name_field

ChatId = Annotated[StrictStr, Field(pattern=r"^[0-9a-f]{1,32}$")]
MessageId = Annotated[StrictInt, Field(ge=1, lt=2**63)]
Prompt = Annotated[Text, Field(pattern=r"\S")]


class Sampling(Numbers):
    """The page's own numbers."""

    max_new_tokens: StrictInt | None = Field(default=None, ge=1)


class _Wish(Strict):
    """id: comes back with the reply."""

    id: StrictInt = Field(ge=0, lt=2**53)


class Hello(_Wish):
    """The first frame. key: where the server has one."""

    do: Literal["hello"]
    key: StrictStr = Field(default="", max_length=1000)


class List(_Wish):
    do: Literal["list"]
    search: StrictStr = Field(default="", max_length=1000)


class Open(_Wish):
    """chat: None for a new one, of which there is nothing to see yet."""

    do: Literal["open"]
    chat: ChatId | None


class Ask(_Wish):
    """A question after another message; parent: None at the root. chat: None begins one, with its system prompt."""

    do: Literal["ask"]
    chat: ChatId | None
    parent: MessageId | None
    text: Prompt
    system: Text = ""
    sampling: Sampling = Field(default_factory=Sampling)


class Again(_Wish):
    """Another answer to a question."""

    do: Literal["again"]
    chat: ChatId
    message: MessageId
    sampling: Sampling = Field(default_factory=Sampling)


class GoOn(_Wish):
    """Go on with an answer that was cut off."""

    do: Literal["go on"]
    chat: ChatId
    message: MessageId
    sampling: Sampling = Field(default_factory=Sampling)


class Stop(_Wish):
    do: Literal["stop"]
    chat: ChatId


class Choose(_Wish):
    do: Literal["choose"]
    chat: ChatId
    message: MessageId


class Rename(_Wish):
    do: Literal["rename"]
    chat: ChatId
    title: StrictStr = Field(max_length=1000, pattern=r"\S")


class Delete(_Wish):
    do: Literal["delete"]
    chat: ChatId


class Export(_Wish):
    do: Literal["export"]
    chat: ChatId
    form: Literal["markdown", "json", "jsonl"]


class Import(_Wish):
    """A file's text. name: for messages about it."""

    do: Literal["import"]
    text: StrictStr
    name: StrictStr = Field(max_length=300)


Wish = Hello | List | Open | Ask | Again | GoOn | Stop | Choose | Rename | Delete | Export | Import
_ADAPTER: TypeAdapter[Wish] = TypeAdapter(Annotated[Wish, Field(discriminator="do")])


def parse_wish(frame: str) -> Wish:
    """Raises ApiError, which names the field."""
    value = parse_json(frame)
    try:
        return _ADAPTER.validate_python(value)
    except ValidationError as error:
        raise _explain(error) from None


def _explain(error: ValidationError) -> ApiError:
    """A sentence for the person at the page, where one can come to it; else the field's name."""
    item = error.errors(include_url=False)[0]
    field = str(item["loc"][-1]) if item["loc"] else ""
    if field == "chat" and item["type"] == "string_pattern_mismatch":
        return ApiError(404, "there is no such conversation")
    if item["type"] == "string_pattern_mismatch":
        return ApiError(400, f"the {field} is empty", field)
    if item["type"] == "string_too_long":
        longest = item.get("ctx", {}).get("max_length", 0)
        return ApiError(400, f"the {field} is longer than {longest:,} characters", field)
    if item["type"] == "string_unicode":
        return ApiError(400, f"the {field} holds half of a character", field)
    return name_field(error)


def find_id(frame: str) -> int | None:
    """The id of a frame that may be wrong in all else."""
    try:
        value = parse_json(frame)
    except ApiError:
        return None
    found = value.get("id") if isinstance(value, dict) else None
    return found if type(found) is int else None
