"""The OpenAPI document of the server: what it takes, what it gives, how it refuses."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from nanochat.web.schema import ChatRequest, CompletionRequest

_REF = "#/components/schemas/{model}"
_ERRORS = {
    "400": "The request is wrong, or asks for what is not supported; the message names the field.",
    "401": "The key is missing or wrong.",
    "403": "The host or the page's origin is not allowed.",
    "404": "There is no such model.",
    "408": "The body did not come.",
    "413": "The body is too large.",
    "429": "The server is busy; Retry-After says when to come again.",
    "500": "The engine failed; it was started again.",
    "503": "The server is stopping, or its engine is broken.",
}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_REQUESTS = {"/v1/chat/completions": ChatRequest, "/v1/completions": CompletionRequest}
_ANSWER = {
    "type": "object",
    "required": ["id", "object", "created", "model", "choices", "usage"],
    "properties": {
        "id": {"type": "string"},
        "object": {"enum": ["chat.completion", "text_completion"]},
        "created": {"type": "integer"},
        "model": {"type": "string"},
        "choices": {"type": "array", "items": {"type": "object", "required": ["index", "finish_reason"]}},
        "usage": {"type": "object"},
    },
}


def describe_api(app: FastAPI) -> dict[str, Any]:
    """The document; made once, for the routes read their bodies themselves and FastAPI knows nothing of them."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, routes=app.routes)
        _, definitions = models_json_schema([(model, "validation") for model in _REQUESTS.values()], ref_template=_REF)
        document["components"] = {
            "schemas": {**definitions["$defs"], "Error": _ERROR, "Answer": _ANSWER},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        }
        for path, operations in document["paths"].items():
            for operation in operations.values():
                _describe(path, operation)
        app.openapi_schema = document
    return app.openapi_schema


def _describe(path: str, operation: dict[str, Any]) -> None:
    refused = {"application/json": {"schema": {"$ref": _REF.format(model="Error")}}}
    responses = operation["responses"]
    responses.pop("422", None)
    if path in _REQUESTS:
        body = {"schema": {"$ref": _REF.format(model=_REQUESTS[path].__name__)}}
        operation["requestBody"] = {"required": True, "content": {"application/json": body}}
        responses["200"]["content"] = {
            "application/json": {"schema": {"$ref": _REF.format(model="Answer")}},
            "text/event-stream": {},
        }
    if path == "/metrics":
        responses["200"]["content"] = {"text/plain": {"schema": {"type": "string"}}}
    if path == "/health":
        responses["503"] = {
            "description": "It stops, or its engine is broken.",
            **{"content": responses["200"]["content"]},
        }
        return
    operation["security"] = [{"key": []}, {}]
    for status, description in _ERRORS.items():
        if path in _REQUESTS or status in ("401", "403") or (status == "404" and "{" in path):
            responses[status] = {"description": description, "content": refused}
