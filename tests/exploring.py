"""Requests that schemathesis makes up from the document at /openapi.json, the same in every run."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

import hypothesis
import schemathesis
from hypothesis.strategies import integers
from schemathesis import GenerationMode, checks

from .asking import MODEL
from .plausible import embeddable, plausible
from .waiting import NET_SECONDS

PATIENCE = {
    "x-request-timeout": f"{NET_SECONDS}"
}  # a request that leaves no time is answered with a 504, and rightly so
CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]


def explore(url: str, examples: int) -> Mapping[str, Counter[int]]:
    """Send each operation so many requests, three of four valid; return how often it answered with each status.

    Raises schemathesis' failures: a status from 500 on, or an answer that is not as described.
    """
    seen = defaultdict[str, Counter[int]](Counter)
    operations: Any = schemathesis.openapi.from_url(f"{url}/openapi.json").get_all_operations()
    for operation in (result.ok() for result in operations):
        _explore(operation, examples, seen[operation.label])
    return seen


def share(statuses: Counter[int]) -> float:
    """Return which part of the requests was answered 200."""
    return statuses[200] / statuses.total()


def stream(url: str, path: str, **sent: Any) -> None:
    """Send a request that is answered with events; raises schemathesis' failures where one is not as described."""
    schemathesis.openapi.from_url(f"{url}/openapi.json")[path]["POST"].Case(**sent).call_and_validate(checks=CHECKS)


def _explore(operation: Any, examples: int, seen: Counter[int]) -> None:
    valid = operation.as_strategy(generation_mode=GenerationMode.POSITIVE).map(_completed)
    invalid = operation.as_strategy(generation_mode=GenerationMode.NEGATIVE).map(_named)
    cases = valid if invalid.is_empty else integers(1, 4).flatmap(lambda number: invalid if number == 4 else valid)

    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=cases)
    def send(case: Any) -> None:
        seen[case.call_and_validate(headers=PATIENCE, checks=CHECKS).status_code] += 1

    send()


def _completed(case: Any) -> Any:
    case.body = (embeddable if case.operation.path == "/v1/embeddings" else plausible)(case.body)
    case.path_parameters = dict.fromkeys(case.path_parameters or (), MODEL)  # a model is all that a path names
    return case


def _named(case: Any) -> Any:
    if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
        case.body["model"] = MODEL
    return case
