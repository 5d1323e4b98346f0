"""What is done to the cluster, one after the other, and how it is undone."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import psutil

from .gateways import dependencies
from .network import DECODER, ENCODERS, GATEWAYS, lose_power, plug_in, processes
from .parts import Cluster
from .programs import until

Undo = Callable[[], None]
PRE_STOP_SECONDS = 5.0  # between leaving the clients' list and SIGTERM; deploy/k8s has 10


@dataclass(frozen=True, slots=True)
class Disruption:
    """Something done to the cluster; what it returns undoes it, after `hold` seconds."""

    name: str
    cause: Callable[[Cluster], Undo | None]
    hold: float = 0.0


def replica_killed(application: str) -> Callable[[Cluster], None]:
    """Kill one replica of an application."""

    def cause(cluster: Cluster) -> None:
        cluster.ray.replica(application).kill()

    return cause


def node_killed(cluster: Cluster) -> Undo:
    """Switch off the node with the encoders and one decoder; undone, it starts again."""
    lose_power(ENCODERS)

    def undo() -> None:
        plug_in(ENCODERS)
        cluster.ray.start_node(ENCODERS)

    return undo


def ingress_killed(cluster: Cluster) -> None:
    """Kill HAProxy on the decoder's node."""
    for pid in processes(DECODER):
        if psutil.Process(pid).name() == "haproxy":
            psutil.Process(pid).kill()


def gateway_stopped(cluster: Cluster) -> Undo:
    """Take a gateway off the clients' list as Kubernetes does, and send it SIGTERM; undone, another starts."""
    name = GATEWAYS[0]
    cluster.load.balanced.remove(name)
    time.sleep(PRE_STOP_SECONDS)
    status = cluster.gateways.stop(name)
    if status != 0:
        raise RuntimeError(f"the gateway ended with status {status}")

    def undo() -> None:
        cluster.gateways.start_one(name)
        until(lambda: dependencies(name) == {"up"}, "the new gateway is ready")
        cluster.load.balanced.append(name)

    return undo


def redis_killed(cluster: Cluster) -> Undo:
    """Kill Redis' master; undone, it starts again as a replica."""
    port = cluster.redis.kill_master()

    def undo() -> None:
        until(lambda: cluster.redis.master() != port, "Sentinel has chosen another master")
        cluster.redis.start_again(port)

    return undo


def redis_hung(cluster: Cluster) -> Undo:
    """Suspend Redis' master; undone, it goes on."""
    hung = cluster.redis.process(cluster.redis.master())
    hung.suspend()
    return hung.resume


def redis_full(cluster: Cluster) -> Undo:
    """Have Redis' master refuse writes for want of memory; undone, it has room."""
    port = cluster.redis.master()
    cluster.redis.configure(port, maxmemory="1", **{"maxmemory-policy": "noeviction"})

    def undo() -> None:
        room = {"maxmemory": "268435456", "maxmemory-policy": "allkeys-lru"}
        cluster.redis.configure(port, **room)

    return undo


def deployed_again(application: str) -> Callable[[Cluster], None]:
    """Deploy an application with other args, and return when none of the replicas before it runs."""

    def cause(cluster: Cluster) -> None:
        before = set(cluster.ray.replicas()[application])
        cluster.ray.redeploy(application)
        until(lambda: _is_replaced(cluster, application, before), f"the replicas of {application} are replaced")

    return cause


def _is_replaced(cluster: Cluster, application: str, before: set[str]) -> bool:
    now = cluster.ray.replicas().get(application, [])
    return bool(now) and before.isdisjoint(now)


FAULTS: Sequence[Disruption] = (
    Disruption("a vision replica is killed", replica_killed("vision")),
    Disruption("a speech replica is killed", replica_killed("speech")),
    Disruption("a decoder replica is killed", replica_killed("decoder")),
    Disruption("the encoders' node loses power, and comes back", node_killed, hold=60),
    Disruption("HAProxy of a node is killed", ingress_killed),
    Disruption("a gateway gets SIGTERM, and another starts", gateway_stopped),
    Disruption("Redis' master is killed, and comes back", redis_killed, hold=15),
    Disruption("Redis' master hangs for 20 s", redis_hung, hold=20),
    Disruption("Redis' master is full for 20 s", redis_full, hold=20),
    Disruption("vision is deployed again", deployed_again("vision")),
    Disruption("speech is deployed again", deployed_again("speech")),
    Disruption("the decoder is deployed again", deployed_again("decoder")),
)
