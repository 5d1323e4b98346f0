"""Requests that schemathesis makes up from the document at /openapi.json, the same for a test and what it imports."""

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import hypothesis
import schemathesis
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


@dataclass(frozen=True)
class Statuses:
    """How often requests as the document describes them, and requests that break it, were answered with each status."""

    valid: Counter[int]
    invalid: Counter[int]

    @property
    def share(self) -> float:
        """Which part of the valid requests was answered 200."""
        return self.valid[200] / self.valid.total()


def explore(url: str, examples: int) -> Mapping[str, Statuses]:
    """Send each operation up to so many valid requests, and a third as many invalid ones; return how it answered.

    Raises schemathesis' failures: a status from 500 on, or an answer that is not as described.
    """
    operations: Any = schemathesis.openapi.from_url(f"{url}/openapi.json").get_all_operations()
    return {operation.label: _explore(operation, examples) for operation in (result.ok() for result in operations)}


def stream(url: str, path: str, **sent: Any) -> None:
    """Send a request that is answered with events; raises schemathesis' failures where one is not as described."""
    schemathesis.openapi.from_url(f"{url}/openapi.json")[path]["POST"].Case(**sent).call_and_validate(checks=CHECKS)


def _explore(operation: Any, examples: int) -> Statuses:
    valid = operation.as_strategy(generation_mode=GenerationMode.POSITIVE).map(_completed)
    invalid = operation.as_strategy(generation_mode=GenerationMode.NEGATIVE).map(_named)
    return Statuses(_send(valid, examples), Counter() if invalid.is_empty else _send(invalid, -(-examples // 3)))


def _send(cases: Any, examples: int) -> Counter[int]:
    seen = Counter[int]()

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

    with suppress(hypothesis.errors.Unsatisfiable):  # no request breaks the document of an operation without fields
        send()
    return seen


def _completed(case: Any) -> Any:
    case.body = (embeddable if case.operation.path == "/v1/embeddings" else plausible)(case.body)
    case.path_parameters = dict.fromkeys(case.path_parameters or (), MODEL)  # a model is all that a path names
    return case


def _named(case: Any) -> Any:
    if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
        case.body["model"] = MODEL
    return case
