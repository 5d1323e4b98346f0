"""The whole cluster: Ray, Redis, gateways and Prometheus, and whether all of it runs."""

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from .alerts import run_prometheus
from .gateways import Gateways
from .load import Load
from .network import make_machines
from .ray_nodes import RayCluster
from .redis_servers import URL, RedisServers

Tell = Callable[[str], None]


@dataclass(slots=True)
class Cluster:
    """What runs, and the clients that ask it."""

    folder: Path
    ray: RayCluster
    redis: RedisServers
    gateways: Gateways
    load: Load
    prometheus: "subprocess.Popen[bytes]"

    @classmethod
    def start(cls, folder: Path, tell: Tell) -> Self:
        """Start all parts, one after the other, and say which one is next."""
        tell("making the machines")
        make_machines(folder)
        tell("starting Redis and Sentinel")
        servers = RedisServers(folder)
        servers.start()
        tell("starting Ray's head and two nodes")
        ray = RayCluster(folder)
        ray.start()
        tell("deploying deploy/serve.yaml")
        ray.deploy()
        tell("starting two gateways")
        gateways = Gateways(folder, URL, ray.token)
        gateways.start()
        tell("starting Prometheus")
        return cls(folder, ray, servers, gateways, Load(), run_prometheus(folder))

    def is_whole(self) -> bool:
        """Return whether every replica runs, Redis has its replica, and both gateways see all of it."""
        return self.redis.is_whole() and self.gateways.are_whole() and self.ray.is_whole()
