"""The autoscaling of deploy/k8s/overlays/autoscale, as Ray Serve's own code decides on it, by a clock of the test's."""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from ray.serve import autoscaling_policy
from ray.serve._private import autoscaling_state
from ray.serve._private.autoscaling_state import DeploymentAutoscalingState
from ray.serve._private.common import RUNNING_REQUESTS_KEY, DeploymentID, ReplicaID, ReplicaMetricReport
from ray.serve._private.deployment_info import DeploymentInfo
from ray.serve._private.metrics_utils import InMemoryMetricsStore
from ray.serve.config import AutoscalingConfig

from autoglm.cli import mesh
from autoglm.common.services import SERVICES
from autoglm.decoder.engine.protocol import Stats
from autoglm.decoder.scaling import autoscaling_stats

OVERLAY = Path(__file__).resolve().parents[3] / "deploy/k8s/overlays/autoscale/generated/serve.yaml"
CONFIG = yaml.safe_load(yaml.safe_load(OVERLAY.read_text())["spec"]["serveConfigV2"])
ROUND_SECONDS = 1.0  # of Serve's controller; it has no fixed period
START_SECONDS = 20.0  # of a replica
SLOTS, CACHE_SHARE = 32, 0.02  # of a decoder: `max_num_seqs`, and what a request takes of the cache

Load = Callable[[float], float]  # seconds → requests that clients have in progress
Report = Callable[[float], dict[str, float]]  # requests at a replica → what it reports of them


class Clock(SimpleNamespace):
    """In place of the module `time`."""

    now = 1e9

    def time(self) -> float:
        return self.now

    monotonic = time


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (autoscaling_state, autoscaling_policy):
        monkeypatch.setattr(module, "time", clock)
    return clock


def encoder(requests: float) -> dict[str, float]:
    return {RUNNING_REQUESTS_KEY: requests}


def decoder(requests: float, cache_share: float = CACHE_SHARE) -> dict[str, float]:
    """Report requests of which each takes a share of the cache: what has no slot, or no room in the cache, waits."""
    running = min(requests, SLOTS, 1 / cache_share)
    stats = Stats(running=int(running), waiting=int(requests - running), cache_usage=running * cache_share)
    return encoder(requests) | autoscaling_stats(stats)


REPORTS: dict[str, Report] = {"vision": encoder, "speech": encoder, "decoder": decoder}


def deployment_config(name: str) -> Any:
    """Return the options of a deployment as the overlay's Serve config has them."""
    (raw,) = (application for application in CONFIG["applications"] if application["name"] == name)
    return mesh.built(mesh.Application(**raw), {})._bound_deployment._deployment_config


@dataclass
class Replica:
    id: ReplicaID
    ready: float
    store: InMemoryMetricsStore


class Deployment:
    """A deployment whose replicas share what clients ask of it, and report; Serve decides how many there are."""

    def __init__(self, name: str, clock: Clock, report: Report | None = None) -> None:
        config = deployment_config(name)
        self.scaling: AutoscalingConfig = config.autoscaling_config
        self._id, self._clock, self._report = DeploymentID(name, name), clock, report or REPORTS[name]
        self._state = DeploymentAutoscalingState(self._id)
        info = DeploymentInfo(config, None, 0, "job")
        self.target = self._state.register(info, self.scaling.min_replicas)
        self._numbers = itertools.count()
        self._replicas = [self._started(ready=0.0) for _ in range(self.target)]

    @property
    def per_replica(self) -> float:
        """The requests that each of its replicas should have."""
        return float(self.scaling.get_target_ongoing_requests())

    @property
    def answered_within(self) -> float:
        """The seconds after which a lasting rise has led to a decision: the mean is that of the new load by then, and
        the delay has passed."""
        reports = 2 * self.scaling.metrics_interval_s
        return float(self.scaling.look_back_period_s + self.scaling.upscale_delay_s + reports)

    def run(self, load: Load, seconds: float) -> Iterator[tuple[float, int]]:
        """Yield the number of replicas that Serve wants, with the time, in each round of its controller."""
        start, reported = self._clock.now, -math.inf
        while (now := self._clock.now - start) < seconds:
            running = [replica for replica in self._replicas if replica.ready <= self._clock.now]
            self._state.update_running_replica_ids([replica.id for replica in running])
            if now - reported >= self.scaling.metrics_interval_s and running:
                reported = now
                for replica in running:
                    self._reports(replica, load(now) / len(running))
            self._decide()
            yield now, self.target
            self._clock.now += ROUND_SECONDS

    def _reports(self, replica: Replica, requests: float) -> None:
        now = self._clock.now
        replica.store.add_metrics_point(dict(self._report(requests)), now)
        replica.store.prune_keys_and_compact_data(now - self.scaling.look_back_period_s)
        report = ReplicaMetricReport(replica.id, {key: [*points] for key, points in replica.store.data.items()}, now)
        self._state.record_request_metrics_for_replica(report)

    def _decide(self) -> None:
        self.target = self._state.get_decision_num_replicas(self.target)
        while len(self._replicas) > self.target:
            self._state.on_replica_stopped(self._replicas.pop().id)
        while len(self._replicas) < self.target:
            self._replicas.append(self._started(ready=self._clock.now + START_SECONDS))

    def _started(self, ready: float) -> Replica:
        return Replica(ReplicaID(f"r{next(self._numbers)}", self._id), ready, InMemoryMetricsStore())


def changes(rounds: Iterator[tuple[float, int]]) -> list[tuple[float, int]]:
    """Return when the number of replicas that Serve wants changed, and to what."""
    pairs = itertools.pairwise(rounds)
    return [(now, after) for (_, before), (now, after) in pairs if after != before]


def square(low: float, high: float, period: float) -> Load:
    """Return a load that is `high` in the first half of each period."""
    return lambda now: high if now % period < period / 2 else low


@pytest.mark.parametrize("period", [60.0, 580.0])  # the last is low for nearly the delay
@pytest.mark.parametrize("name", SERVICES)
def test_a_square_wave_leads_to_one_rise_and_no_fall(name: str, period: float, clock: Clock) -> None:
    deployment = Deployment(name, clock)
    assert wave(deployment, period) == [3]


@pytest.mark.parametrize("name", SERVICES)
def test_a_delay_shorter_than_the_lows_would_flap(name: str, clock: Clock) -> None:
    deployment = Deployment(name, clock)
    deployment.scaling.downscale_delay_s = 30.0
    assert wave(deployment, 200.0) == [3, 1] * 8


def wave(deployment: Deployment, period: float) -> list[int]:
    """Return what the number of replicas changes to under a square wave."""
    load = square(0.5 * deployment.per_replica, 2.5 * deployment.per_replica, period)
    return [target for _, target in changes(deployment.run(load, 1600))]


@pytest.mark.parametrize("name", SERVICES)
def test_a_fast_square_wave_leads_to_what_its_mean_needs(name: str, clock: Clock) -> None:
    """Its highs are shorter than the delay: they are no reason for more replicas, nor their ends for fewer."""
    deployment = Deployment(name, clock)
    changed = changes(deployment.run(square(0.5 * deployment.per_replica, 1.3 * deployment.per_replica, 8.0), 900))
    assert changed == []


@pytest.mark.parametrize("name", SERVICES)
def test_a_lasting_rise_is_answered_in_time_and_at_once(name: str, clock: Clock) -> None:
    deployment = Deployment(name, clock)
    ((when, target),) = changes(deployment.run(lambda now: (2.5 if now >= 100 else 0.5) * deployment.per_replica, 900))
    assert target == 3
    assert 100 + deployment.scaling.upscale_delay_s <= when <= 100 + deployment.answered_within


@pytest.mark.parametrize("name", SERVICES)
def test_a_lasting_fall_leads_down_slowly(name: str, clock: Clock) -> None:
    deployment = Deployment(name, clock)
    list(deployment.run(lambda _: 2.5 * deployment.per_replica, 600))
    assert deployment.target == 3
    ((when, target),) = changes(deployment.run(lambda _: 0.5 * deployment.per_replica, 900))
    assert target == 1
    assert when >= deployment.scaling.downscale_delay_s


@pytest.mark.parametrize("name", SERVICES)
def test_no_load_leads_beyond_the_most_replicas(name: str, clock: Clock) -> None:
    deployment = Deployment(name, clock)
    targets = {target for _, target in deployment.run(lambda _: 100 * deployment.per_replica, 600)}
    assert max(targets) == deployment.scaling.max_replicas == 4


@pytest.mark.parametrize("name", SERVICES)
def test_no_delay_is_shorter_than_what_is_averaged_over(name: str) -> None:
    scaling = deployment_config(name).autoscaling_config
    assert scaling.metrics_interval_s < scaling.look_back_period_s <= scaling.upscale_delay_s
    assert scaling.upscale_delay_s == 10
    assert scaling.downscale_delay_s == 300
    assert scaling.initial_replicas or scaling.min_replicas


def test_speech_alone_ends_without_requests(clock: Clock) -> None:
    ends = {}
    for name in SERVICES:
        ends[name] = changes(Deployment(name, clock).run(lambda _: 0.0, 900))
    ((when, target),) = ends.pop("speech")
    assert target == 0
    assert when >= 600
    assert ends == {"vision": [], "decoder": []}


def test_a_full_cache_needs_more_replicas_though_slots_are_free(clock: Clock) -> None:
    """Sixteen long conversations of which eight fit into a cache: half of the slots would be free."""
    deployment = Deployment("decoder", clock, lambda requests: decoder(requests, cache_share=1 / 8))
    ((when, target),) = changes(deployment.run(lambda _: 16.0, 600))
    assert target == 3  # at 80 % of a cache each, which is 6.4 of them
    assert when <= deployment.answered_within


def test_a_controller_that_has_just_started_keeps_what_there_is(clock: Clock) -> None:
    deployment = Deployment("decoder", clock)
    deployment.target = 3
    state = deployment._state
    assert [state.get_decision_num_replicas(3) for _ in range(3)] == [3] * 3
    clock.now += 3600
    assert state.get_decision_num_replicas(3) == 3
