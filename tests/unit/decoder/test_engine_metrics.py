"""What the engine counts, how that becomes metrics, and that an engine which hangs is unhealthy."""

import asyncio
import time
from collections.abc import Sequence as Rows
from dataclasses import replace
from queue import SimpleQueue
from threading import Event
from typing import Any, cast

import grpc
import pytest
from ray.util.metrics import Metric
from torch import Tensor

from autoglm.common import serve_metrics
from autoglm.common.errors import InvalidRequest
from autoglm.common.server import fail
from autoglm.decoder.engine.engine import EmbeddedEngine
from autoglm.decoder.engine.protocol import Engine, Stats, StepRecord
from autoglm.decoder.engine.request import Request, RequestOutput
from autoglm.decoder.engine.sequence import Sequence
from autoglm.decoder.metrics import DecoderMetrics
from autoglm.decoder.progress import STUCK_CHECKS, ProgressCheck
from autoglm.decoder.servicer import DecoderServicer
from autoglm.fusion.compose import Composer

from ...waiting import NET_SECONDS, eventually, eventually_async
from .engines import CONTEXT, GREEDY, Engines, answer_of, prompts, submit

Recorded = list[tuple[str, float, dict[str, str] | None]]
FOUR = replace(GREEDY, max_tokens=4)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    """What Ray's metrics are given: name, value, tags."""
    found: Recorded = []

    def record(self: Metric, value: float, tags: dict[str, str] | None = None) -> None:
        found.append((self.info["name"], value, tags))

    monkeypatch.setattr(Metric, "_record", record)
    return found


class FakeEngine:
    """An engine that has done what a test says."""

    name = "embedded"

    def __init__(self, *stats: Stats, steps: Rows[StepRecord] = ()) -> None:
        self._stats, self._steps = list(stats), list(steps)

    def stats(self) -> Stats:
        return self._stats.pop(0) if len(self._stats) > 1 else self._stats[0]

    def steps(self) -> list[StepRecord]:
        steps, self._steps = self._steps, []
        return steps

    def alive(self) -> bool:
        return True


def answered(engine: EmbeddedEngine, composer: Composer) -> Stats:
    """Have the engine answer two prompts at once, and return its figures."""
    both = [submit(engine, prompt, FOUR)[1] for prompt in prompts(composer)[:2]]
    for outputs in both:
        answer_of(outputs)
    return engine.stats()


def test_an_engine_counts_tokens_and_steps(engines: Engines, composer: Composer) -> None:
    engine, before = engines(), time.time()
    stats = answered(engine, composer)
    sizes = [len(prompt.token_ids) for prompt in prompts(composer)[:2]]
    assert (stats.prompt_tokens, stats.generation_tokens, stats.active) == (sum(sizes), 8, 0)
    assert before <= stats.last_token <= time.time()
    engine.close()  # after the last step
    steps = engine.steps()
    # The first token of each answer comes with its prompt.
    assert sum(step.num_tokens for step in steps) == engine.core.stats.progress >= sum(sizes) + 6
    assert {step.num_sequences for step in steps} <= {1, 2}
    assert all(step.seconds is not None and step.seconds > 0 for step in steps)
    assert engine.steps() == []


def test_metrics_have_vllms_names(recorded: Recorded) -> None:
    counted = Stats(running=2, waiting=1, cache_usage=0.5, generation_tokens=7, preemptions=1, last_token=9.0)
    engine = FakeEngine(counted, steps=[StepRecord(3, 40, 0.1), StepRecord(2, 2)])
    metrics = DecoderMetrics(cast(Engine, engine))
    assert {name for name, value, _ in recorded if value == 0.0} == {
        "autoglm_prompt_tokens",
        "autoglm_generation_tokens",
        "autoglm_prefix_cache_queries",
        "autoglm_prefix_cache_hits",
        "autoglm_num_preemptions",
        "autoglm_retried_calls",
        "autoglm_failed_calls",
    }
    recorded.clear()
    metrics.publish()
    metrics.publish()
    found = [(name, value) for name, value, _ in recorded]
    for gauge in (("num_requests_running", 2), ("num_requests_waiting", 1), ("kv_cache_usage_perc", 0.5)):
        assert found.count((f"autoglm_{gauge[0]}", gauge[1])) == 2  # Ray forgets a gauge that is not set again
    for once in (
        ("generation_tokens", 7),
        ("num_preemptions", 1),
        ("engine_batch_size", 3),
        ("engine_batch_size", 2),
        ("iteration_tokens_total", 40),
        ("engine_step_seconds", 0.1),
    ):
        assert found.count((f"autoglm_{once[0]}", once[1])) == 1
    assert [value for name, value in found if name == "autoglm_engine_step_seconds"] == [0.1]


async def test_metrics_are_published_without_a_health_check(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(serve_metrics, "PUBLISH_SECONDS", 0)
    engine = FakeEngine(Stats(running=1))
    metrics = DecoderMetrics(cast(Engine, engine))
    monkeypatch.setattr(engine, "steps", lambda: 1 / 0)
    metrics.start(bundle="nano", revision="r1", device="cpu", engine="embedded")

    async def twice() -> bool:
        return recorded.count(("autoglm_num_requests_running", 1, None)) >= 2

    await eventually_async(twice, "the gauges are set again and again, though something fails each time")
    metrics._publishing.cancel()
    await asyncio.gather(metrics._publishing, return_exceptions=True)
    assert [record.message.partition("\n")[0] for record in caplog.records] == [
        "metrics could not be recorded: ZeroDivisionError"
    ]
    tags = next(tags for name, _, tags in recorded if name == "autoglm_build_info")
    assert tags is not None
    assert tags.keys() == {"version", "bundle", "revision", "device", "engine"}


class FakeCall:
    """A call with metadata, on which a code is set as on gRPC's own."""

    def __init__(self, **metadata: str) -> None:
        self._metadata, self._code = metadata, cast(grpc.StatusCode, 0)

    def set_code(self, code: grpc.StatusCode) -> None:
        self._code = code

    def set_details(self, details: str) -> None:
        pass

    def set_trailing_metadata(self, metadata: list[tuple[str, str | bytes]]) -> None:
        pass

    def code(self) -> grpc.StatusCode:
        return self._code

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return [(name.replace("_", "-"), value) for name, value in self._metadata.items()]


def test_calls_that_were_tried_before_are_counted(recorded: Recorded) -> None:
    metrics = DecoderMetrics(cast(Engine, FakeEngine(Stats())))
    recorded.clear()
    for call in (FakeCall(application="decoder"), FakeCall(application="decoder", grpc_previous_rpc_attempts="2")):
        with metrics.call(call):
            pass
    assert [(name, value) for name, value, _ in recorded] == [("autoglm_retried_calls", 1.0)]


def test_calls_that_fail_are_counted_by_their_code(recorded: Recorded) -> None:
    """Serve counts them as OK: their errors are set, not raised."""
    metrics = DecoderMetrics(cast(Engine, FakeEngine(Stats())))
    recorded.clear()
    for error in (None, InvalidRequest("no"), KeyError("unexpected")):
        call = FakeCall()
        with metrics.call(call):
            if error is not None:
                fail(call, error)
    failed = ("autoglm_failed_calls", 1.0)
    assert recorded == [(*failed, {"code": "INVALID_ARGUMENT"}), (*failed, {"code": "INTERNAL"})]


def checked(*stats: Stats) -> list[bool]:
    check = ProgressCheck()
    return [check.is_stuck(each) for each in stats]


def test_an_engine_that_has_work_and_does_nothing_is_stuck() -> None:
    hangs = [Stats(active=1, running=1, progress=5)] * (STUCK_CHECKS + 1)
    assert checked(*hangs) == [False] * STUCK_CHECKS + [True]
    waits = [Stats(active=1, waiting=1, progress=5)] * (STUCK_CHECKS + 1)
    assert checked(*waits)[-1]


def test_an_engine_that_goes_on_or_has_nothing_to_do_is_healthy() -> None:
    busy = [Stats(active=1, running=1, progress=number) for number in range(3 * STUCK_CHECKS)]
    idle = [Stats(progress=5)] * 3 * STUCK_CHECKS
    clients = [Stats(waiting=1, progress=5)] * 3 * STUCK_CHECKS  # paused: they do not read
    hung, late = [Stats(active=1, progress=5)] * STUCK_CHECKS, [Stats(active=1, progress=6)]
    for stats in (busy, idle, clients, [*hung, *late, *hung]):
        assert not any(checked(*stats))


def test_a_replica_whose_engine_hangs_is_unhealthy(
    engines: Engines, composer: Composer, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, inside, over = engines(), Event(), Event()
    servicer = DecoderServicer.__new__(DecoderServicer)
    servicer.engine, servicer._progress = engine, ProgressCheck()
    answered(engine, composer)
    for _ in range(2 * STUCK_CHECKS):
        servicer.check_health()
    decode = engine.core.runner.decode

    def hang(sequences: list[Sequence], first: int) -> Tensor:
        inside.set()
        over.wait(NET_SECONDS)
        return decode(sequences, first)

    monkeypatch.setattr(engine.core.runner, "decode", hang)
    _, outputs = submit(engine, prompts(composer)[3], FOUR)
    assert inside.wait(NET_SECONDS)
    with pytest.raises(RuntimeError, match="the engine hangs: 1 requests wait"):
        _checks(servicer)
    over.set()
    answer_of(outputs)
    _checks(servicer)


def _checks(servicer: Any) -> None:
    for _ in range(STUCK_CHECKS + 1):
        servicer.check_health()


def test_a_client_that_does_not_read_is_no_engine_that_hangs(engines: Engines, composer: Composer) -> None:
    engine, outputs = engines(), SimpleQueue[RequestOutput]()
    request = Request(prompts(composer)[0], replace(GREEDY, max_tokens=50), CONTEXT, max_backlog=10)
    engine.submit(request, outputs.put)
    eventually(lambda: (engine.stats().active, engine.stats().waiting) == (0, 1), "the request is paused")
    engine.acknowledge(request.id, 1000)
    answer_of(outputs)
