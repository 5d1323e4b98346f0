"""Which services are up and what they are, as metrics that each scrape reads from the last poll."""

from collections.abc import Iterator
from importlib.metadata import version

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from autoglm.gateway.health import MeshState


class MeshCollector(Collector):
    """Collects `autoglm_upstream_up` of the applications that are deployed, and `autoglm_build_info`."""

    def __init__(self, state: MeshState) -> None:
        self._state = state

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        up = GaugeMetricFamily(
            "autoglm_upstream_up",
            "Whether an application that is deployed answers, or is scaled to zero and would start.",
            labels=["application"],
        )
        for application, status in self._state.applications().items():
            up.add_metric([application], status != "down")
        yield up
        info = InfoMetricFamily(
            "autoglm_build",
            "What runs: the gateway's version, and what each application last said of itself.",
            labels=["application"],
        )
        info.add_metric(["gateway"], {"version": version("autoglm-mesh")})
        for application, described in self._state.descriptions().items():
            info.add_metric([application], described)
        yield info
