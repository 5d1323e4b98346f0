"""How many replicas of the decoder there should be: an autoscaling policy that the Serve config can name.

Serve's own policy counts requests alone. In a decoder a few long conversations fill the cache of keys and values while
most slots are free, and others then wait. So this one counts both, and takes whichever needs more replicas. Requests
that wait count like those that run, and are taken to need as much of the cache.

Serve calls it in its controller, which has no model: nothing here needs torch.
"""

from collections.abc import Mapping
from typing import Any

from autoglm.decoder.engine.protocol import Stats

RUNNING, WAITING, CACHE_USAGE = "num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"


def autoscaling_stats(stats: Stats) -> dict[str, float]:
    """Return what a replica reports of its engine, for the policy."""
    return {RUNNING: stats.running, WAITING: stats.waiting, CACHE_USAGE: stats.cache_usage}


class DecoderPolicy:
    """Serve calls it in each round of its controller; delays, factors and bounds of `autoscaling_config` still hold.

    A replica should have `target_ongoing_requests` requests, running and waiting, and at most `target_kv_cache_usage`
    of its cache, from 0 to 1, in use.
    """

    def __init__(self, target_kv_cache_usage: float) -> None:
        self._target_usage = target_kv_cache_usage

    def __call__(self, context: Any) -> tuple[float, dict[str, Any]]:
        """Return the number of replicas for what Serve's AutoscalingContext says, and no state.

        What a replica reports is a mean over the look-back period. While none reports, as when the controller has just
        started, the number stays.
        """
        reported: Mapping[str, Mapping[Any, float]] = context.aggregated_metrics
        if not (running := reported.get(RUNNING)):
            return context.target_num_replicas, {}
        waiting, usage = reported[WAITING], reported[CACHE_USAGE]
        requests = sum(running.values()) + sum(waiting.values())
        needed = sum(usage[each] * (1 + waiting[each] / max(running[each], 1)) for each in running)
        return max(requests / context.config.get_target_ongoing_requests(), needed / self._target_usage), {}
