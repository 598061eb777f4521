"""What of a request asks for nothing, and is taken out before the request is checked.

A field that is null or empty is one, whatever its name; so is one of OpenAI's with its default value. What is left asks
for something: `schema.py` takes it, or refuses it by name.
"""

from collections.abc import Collection
from typing import Any

from nanochat.web.errors import ApiError

DEFAULTS: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "include_obfuscation": (False,),
    "logprobs": (False,),
    "modalities": (["text"],),
    "parallel_tool_calls": (False, True),
    "presence_penalty": (0,),
    "prompt_cache_retention": ("in_memory",),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tool_choice": ("none", "auto"),
    "top_logprobs": (0,),
    "verbosity": ("medium",),
}
"""OpenAI's fields with the values that ask for nothing. With no tools there is nothing to choose or to call at once."""
NAMES = ("prompt_cache_key", "safety_identifier")
"""They say whose request it is, as `user` does: of use to a server that many people pay for."""

OWN_TOOLS = "this server calls no tools of yours"
IN_WORDS = "write what the tool answered into a message of the user"


def drop_neutral(values: dict[str, Any], known: Collection[str]) -> dict[str, Any]:
    """The fields that ask for something. known: may be null or empty, which the schema judges.

    >>> drop_neutral({"seed": None, "stop": "", "tools": [], "n": 2, "logit_bias": {"5": 1}}, ["seed", "stop", "n"])
    {'seed': None, 'stop': '', 'n': 2, 'logit_bias': {'5': 1}}
    """
    return {name: value for name, value in values.items() if not _is_neutral(name, value, known)}


def drop_neutral_of_message(message: Any, place: int, known: Collection[str]) -> Any:
    """A message as the schema knows it. Raises ApiError for what no model of this server can read."""
    if not isinstance(message, dict):
        return message
    if isinstance(of_litellm := message.get("provider_specific_fields"), dict):  # it moves there what is not OpenAI's
        message = {**of_litellm, **message, "provider_specific_fields": None}
    role, where = message.get("role"), f"messages.{place}"
    if role in ("tool", "function"):
        raise ApiError(400, f"{where}.role = {role!r}: {OWN_TOOLS}; {IN_WORDS}", f"{where}.role", _UNSUPPORTED)
    message = drop_neutral(message, known)
    for name in ("tool_calls", "function_call"):
        if name in message:
            said = f"{where}.{name}: {OWN_TOOLS}; leave the call out, and {IN_WORDS}"
            raise ApiError(400, said, f"{where}.{name}", _UNSUPPORTED)
    content = message.get("content")
    if content is None and role == "assistant":
        message["content"] = ""
    elif content is None and isinstance(role, str):
        said = f"{where}.content is missing or null: a message of the {role} needs text"
        raise ApiError(400, said, f"{where}.content")
    elif isinstance(content, list):
        parts = [drop_neutral(part, ("type", "text")) if isinstance(part, dict) else part for part in content]
        message["content"] = parts
    return message


_UNSUPPORTED = "unsupported_parameter"


def _is_neutral(name: str, value: Any, known: Collection[str]) -> bool:
    is_default = any(type(value) is type(default) and value == default for default in DEFAULTS.get(name, ()))
    is_zero = value == 0.0 and type(value) is float and 0 in DEFAULTS.get(name, ())
    if name in known:
        return is_default and name in ("logprobs", "top_logprobs")
    return is_default or is_zero or _is_nothing(value) or (name in NAMES and isinstance(value, str))


def _is_nothing(value: Any) -> bool:
    """
    >>> _is_nothing({"refusal": None, "calls": []}), _is_nothing(False), _is_nothing([0])
    (True, False, False)
    """
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return value is None or value == "" or (inner is not None and all(map(_is_nothing, inner)))
