"""The OpenAPI document against the server: Schemathesis sends what it allows and what it forbids."""

import contextlib
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import schemathesis
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from tests.web.serving import Serving, serving, tiny_model


def wrong_data_is_refused(context: Any, response: Any, case: Any) -> bool | None:
    """`negative_data_rejection`, for which 413 is no refusal: a text may be too long for the document and for us."""
    return None if response.status_code == 413 else negative_data_rejection(context, response, case)


# Not that all the document allows is taken: who speaks first, and what fits, no schema can say.
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    wrong_data_is_refused,
]


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    with serving(tiny_model(), slots=8) as found:
        yield found


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_every_answer_is_as_the_document_says(server: Serving, mode: GenerationMode) -> None:
    document = schemathesis.openapi.from_dict(server.get("/openapi.json").json())
    operations = [found.ok() for found in document.get_all_operations()]
    assert len(operations) == 6
    for operation in operations:

        @hypothesis.settings(
            max_examples=100, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
        )
        @hypothesis.seed(0)
        @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
        def check(case: Any) -> None:
            case.call_and_validate(base_url=server.url, checks=CHECKS)

        with contextlib.suppress(hypothesis.errors.Unsatisfiable):  # a route that takes nothing cannot be asked wrongly
            check()


def test_the_document_describes_requests_and_refusals(server: Serving) -> None:
    document = server.get("/openapi.json").json()
    body = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/ChatRequest"}
    fields = document["components"]["schemas"]["ChatRequest"]
    assert {"messages", "max_completion_tokens", "seed", "top_k"} <= fields["properties"].keys()
    assert fields["additionalProperties"] is False
    assert set(document["paths"]["/v1/completions"]["post"]["responses"]) >= {"200", "400", "413", "429", "503"}
