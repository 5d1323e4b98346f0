"""What the three Serve applications share: deployment options, the start of a replica, and its watchdog."""

import asyncio
import gc
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ray import serve

from autoglm.common import environment, tracing
from autoglm.common.deadlines import grace_seconds, max_timeout_of
from autoglm.common.logs import log_config
from autoglm.common.memory import release_free_memory
from autoglm.common.modalities import ApplicationName
from autoglm.common.ray_internals import log_through_serve
from autoglm.common.serve_metrics import EncoderMetrics
from autoglm.common.serve_settings import ServiceSettings
from autoglm.common.watchdog import Ask, watch
from autoglm.v1.embedding_pb2 import EncoderInfo

logger = logging.getLogger("ray.serve")

Servicer = TypeVar("Servicer")
Settings = TypeVar("Settings", bound=ServiceSettings)


def application(replica: type[Any], settings: ServiceSettings) -> serve.Application:
    """Return the application that runs `replica` with the options in `settings`."""
    deployment = serve.deployment(
        replica,
        # How soon a replica that died is noticed. One that hangs ends itself (watchdog.py); the timeout, three times in
        # a row, is for one whose watchdog hangs too, and far beyond what a replica on a busy machine needs.
        health_check_period_s=1,
        health_check_timeout_s=15,
        graceful_shutdown_timeout_s=grace_seconds(max_timeout_of(os.environ)),  # it ends once its answers have ended
        # A new version's replicas start before the old ones end, so that a deployment interrupts nothing. A GPU has no
        # room for both: there the old ones end first.
        max_surge_percent=0 if settings.num_gpus else 100,
        max_ongoing_requests=settings.max_ongoing_requests,
        max_queued_requests=settings.max_queued_requests,
        logging_config=log_config(os.environ) or None,  # without it, that of the Serve config
        ray_actor_options={"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus},
    )
    return deployment.bind(settings.model_dump())


def load_servicer(name: ApplicationName, load: Callable[[Settings], Servicer], settings: Settings) -> Servicer:
    """Prepare the process of a replica and return its loaded servicer: log, variables, traces, threads, memory.

    Raises ValueError for a variable of the environment that cannot be used.
    """
    import torch

    log_through_serve()
    reviewed = environment.review(os.environ, reads=environment.SERVICES)
    for warning in reviewed.warnings:
        logger.warning(warning)
    if reviewed.faults:
        raise ValueError(reviewed.faults[0])
    tracing.start(name)
    torch.set_num_threads(settings.threads or max(1, (os.cpu_count() or 1) // 2))
    servicer = load(settings)
    gc.collect()
    gc.freeze()  # what is loaded stays: looking through it again would stop every thread for a quarter of a second
    release_free_memory()
    return servicer


def watch_replica(threads: Mapping[str, Ask]) -> None:
    """End this replica when its event loop, which is the running one, or one of `threads` hangs; Serve restarts it."""
    watch({"event loop": asyncio.get_running_loop().call_soon_threadsafe, **threads})


class EncoderReplica:
    """The base of the encoders' replicas: the metrics of the encoder, which `info` describes, and the watchdog over its
    `threads`."""

    def __init__(self, threads: Mapping[str, Ask], info: EncoderInfo) -> None:
        self._metrics = EncoderMetrics()
        self._metrics.start(bundle=info.bundle, revision=info.revision, device=info.device, engine="torch")
        watch_replica(threads)
