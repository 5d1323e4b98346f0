"""Whether a query asks for metrics and labels that there are."""

from collections.abc import Collection, Iterator
from functools import cache
from typing import Any

import metrics_docs
import promql_parser

TARGET = {"namespace", "instance", "job"}  # which Prometheus adds
OF_SERVE = {
    "ray_serve_autoscaling_target_replicas": {"application", "deployment"},
    "ray_serve_deployment_status": {"application", "deployment"},
    "ray_serve_deployment_replica_healthy": {"application", "deployment", "replica"},
    "ray_serve_num_grpc_requests_total": {"application", "method", "status_code"},
    "ray_serve_grpc_request_latency_ms_bucket": {"application", "method", "status_code", "le"},
    "process_resident_memory_bytes": set(),
}


@cache
def known() -> dict[str, dict[str, set[str]]]:
    """Return the labels of each sample, with their values where these are known."""
    found: dict[str, dict[str, set[str]]] = {
        name: {label: set() for label in labels} for name, labels in OF_SERVE.items()
    }
    for metric in (*metrics_docs.gateway(), *metrics_docs.services()):
        labels = {label: set(values) for label, values in metric.labels.items()}
        ends = ("_bucket", "_count", "_sum") if metric.kind == "histogram" else ("",)
        found |= {metric.name + end: labels | ({"le": set()} if end == "_bucket" else {}) for end in ends}
    return found


def selectors(node: Any) -> Iterator[Any]:
    """Yield each selector of a query."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    for name in ("expr", "lhs", "rhs", "vector_selector", "vs"):
        if (child := getattr(node, name, None)) is not None:
            yield from selectors(child)
    for child in getattr(node, "args", ()):
        yield from selectors(child)


def grouped(node: Any) -> set[str]:
    """Return the labels that a query groups by."""
    modifier = getattr(node, "modifier", None) if isinstance(node, promql_parser.AggregateExpr) else None
    found = set(modifier.labels) if modifier is not None else set()
    children = [getattr(node, name, None) for name in ("expr", "lhs", "rhs")] + list(getattr(node, "args", ()))
    return found.union(*(grouped(child) for child in children if child is not None))


def check_query(query: str, recorded: Collection[str] = ()) -> None:
    """Raise ValueError for a query that is none, AssertionError for a metric or label that no part of a mesh has and
    no rule records."""
    parsed = promql_parser.parse(query)
    asked, metrics = list(selectors(parsed)), known()
    assert asked
    for selector in asked:
        if selector.name in recorded:
            continue
        labels = metrics[selector.name]
        for matcher in selector.matchers.matchers:
            assert matcher.name in labels.keys() | TARGET
            if matcher.op == promql_parser.MatchOp.Equal and labels[matcher.name]:
                assert matcher.value in labels[matcher.name]
    names = {label for selector in asked for label in metrics.get(selector.name, {})}
    assert grouped(parsed) <= names | TARGET
