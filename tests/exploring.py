"""Requests that schemathesis makes up from the document at /openapi.json, the same in every run."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import hypothesis
import schemathesis
from schemathesis import GenerationMode, checks

from .asking import MODEL
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


def explore(url: str, examples: int) -> Mapping[str, set[int]]:
    """Send each operation so many valid and invalid requests, most to a model that exists; return the statuses seen.

    Raises schemathesis' failures: a status from 500 on, or an answer that is not as described.
    """
    seen = defaultdict[str, set[int]](set)
    operations: Any = schemathesis.openapi.from_url(f"{url}/openapi.json").get_all_operations()
    for operation in (result.ok() for result in operations):
        _explorer(operation, examples, seen[operation.label])()
    return seen


def stream(url: str, path: str, **sent: Any) -> None:
    """Send a request that is answered with events; raises schemathesis' failures where one is not as described."""
    schemathesis.openapi.from_url(f"{url}/openapi.json")[path]["POST"].Case(**sent).call_and_validate(checks=CHECKS)


def _explorer(operation: Any, examples: int, seen: set[int]) -> Callable[[], None]:
    modes = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    cases = hypothesis.strategies.one_of(*(operation.as_strategy(generation_mode=mode) for mode in modes))

    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=cases)
    def send(case: Any) -> None:
        if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
            case.body["model"] = MODEL
        seen.add(case.call_and_validate(headers=PATIENCE, checks=CHECKS).status_code)

    return send
