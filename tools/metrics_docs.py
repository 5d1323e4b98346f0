"""Writes docs/metrics.md from tools/metrics_docs.md and the metrics in the code: `make docs`."""

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast
from unittest.mock import patch

from pages import ROOT, write_or_check
from prometheus_client import Metric
from ray.util import metrics as ray_metrics

from autoglm.common.serve_metrics import EncoderMetrics
from autoglm.decoder.engine.protocol import Stats
from autoglm.decoder.metrics import DecoderMetrics
from autoglm.gateway.mesh_metrics import MeshCollector
from autoglm.gateway.metrics import GatewayMetrics

PAGE, INTRODUCTION = ROOT / "docs" / "metrics.md", ROOT / "tools" / "metrics_docs.md"
HEAD = ("| Metric | Type | Unit | Labels | Meaning |", "|---|---|---|---|---|")
SERVE_LABELS = ("application", "deployment", "replica")
MOST_VALUES = 7  # of a label that are written out
# By the end of a name, the first that fits.
UNITS = (
    ("_timestamp_seconds", "Unix time, s"),
    ("_seconds", "s"),
    ("_bytes", "bytes"),
    ("_tokens", "tokens"),
    ("_tokens_total", "tokens"),
    ("_bytes_in_progress", "bytes"),
    ("_prefix_cache_queries_total", "tokens"),
    ("_prefix_cache_hits_total", "tokens"),
    ("_perc", "0 to 1"),
    ("_mean", "0 to 1"),
    ("_up", "0 or 1"),
    ("_open", "0 or 1"),
    ("_successful", "0 or 1"),
    ("_info", "1"),
    ("_batch_size", "items"),
)


@dataclass(frozen=True)
class Described:
    """A metric of the page; `labels` have their values, where these are known."""

    name: str
    kind: str
    labels: Mapping[str, Iterable[str]]
    meaning: str

    def row(self) -> str:
        """Return its row."""
        labels = "<br>".join(_label(name, sorted(values)) for name, values in self.labels.items())
        return f"| `{self.name}` | {self.kind} | {unit(self.name)} | {labels} | {self.meaning} |"


def _label(name: str, values: list[str]) -> str:
    written = ", ".join(f"`{value}`" for value in values)
    return f"`{name}`: {written}" if 0 < len(values) <= MOST_VALUES else f"`{name}`"


def unit(name: str) -> str:
    """Return the unit of a metric, which its name ends with; what has none is a number of things."""
    return next((text for end, text in UNITS if name.endswith(end)), "")


class NamesOnly:
    """Stands for an engine and for the state of a mesh, of which only the names matter here."""

    def stats(self) -> Stats:
        """Return the figures of an engine that has done nothing."""
        return Stats()

    def applications(self) -> dict[str, str]:
        """Return a mesh with every application."""
        return dict.fromkeys(("vision", "speech", "decoder"), "up")

    def descriptions(self) -> dict[str, dict[str, str]]:
        """Return what an application says of itself."""
        return {"decoder": dict.fromkeys(("bundle", "revision", "device", "engine"), "")}


def gateway() -> Iterator[Described]:
    """Yield the gateway's metrics."""
    metrics = GatewayMetrics()
    metrics.registry.register(MeshCollector(cast(Any, NamesOnly())))
    metrics.uses_redis(lambda: False)
    for setting in ("api_keys_file", "ssl"):
        metrics.reloaded(setting, True)
    for family in metrics.registry.collect():
        if family.name.startswith("autoglm_"):
            name = family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")
            yield Described(name, family.type, _values(family), family.documentation)


def _values(family: Metric) -> dict[str, set[str]]:
    found = dict[str, set[str]]()
    for sample in family.samples:
        for label, value in sample.labels.items():
            if label != "le":
                is_known = family.type != "info" or label == "application"
                found.setdefault(label, set()).update({value} if is_known else ())
    return found


def services() -> Iterator[Described]:
    """Yield the metrics of the encoders' replicas and of the decoder's."""
    with patch.object(ray_metrics.Metric, "_record"):  # there is no Ray here to record anything
        owners = (EncoderMetrics(), DecoderMetrics(cast(Any, NamesOnly())))
    named = dict[str, Described]()
    for owner in owners:
        for metric in _metrics_of(owner):
            described = _of_ray(metric)
            named[described.name] = described
    yield from named.values()


def _metrics_of(owner: object) -> Iterator[ray_metrics.Metric]:
    for attribute in vars(owner).values():
        values = attribute.values() if isinstance(attribute, dict) else [attribute]
        yield from (value for value in values if isinstance(value, ray_metrics.Metric))


def _of_ray(metric: ray_metrics.Metric) -> Described:
    kind = next(base.__name__.lower() for base in type(metric).__mro__ if base.__module__ == ray_metrics.__name__)
    name = f"ray_{metric.info['name']}" + ("_total" if kind == "counter" else "")
    labels = dict.fromkeys((*metric.info["tag_keys"], *SERVE_LABELS), ())
    return Described(name, kind, labels, metric.info["description"])


def document() -> str:
    """Return the page."""
    tables = {"gateway": gateway(), "services": services()}
    text = INTRODUCTION.read_text(encoding="utf-8")
    for name, rows in tables.items():
        text = text.replace(f"[[{name}]]", "\n".join((*HEAD, *(each.row() for each in rows))))
    return re.sub(r"\n{3,}", "\n\n", text)


if __name__ == "__main__":
    write_or_check(PAGE, document())
    sys.exit(0)
