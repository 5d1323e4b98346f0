"""The embedded engine: a thread around the core, and the two queues between them and everyone else.

In go requests, aborts and acknowledgements, out come outputs. All of it can be pickled, so that the core can move into
a process of its own.
"""

import logging
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from autoglm.common.error_log import ErrorLog
from autoglm.common.errors import UpstreamUnavailable
from autoglm.decoder.engine.core import EngineCore
from autoglm.decoder.engine.protocol import Consumer, Stats, StepRecord, taken
from autoglm.decoder.engine.request import Request, RequestOutput
from autoglm.decoder.engine.scheduler import tokens_to_first

logger = logging.getLogger("autoglm.decoder")

IDLE_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Abort:
    """A request is dropped."""

    request_id: int


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """A consumer has read so many outputs of a request."""

    request_id: int
    num_outputs: int


class EmbeddedEngine:
    """The engine that needs nothing but torch; see Engine for what it promises."""

    name = "embedded"

    def __init__(self, core: EngineCore) -> None:
        self.core = core
        self._input: list[Request | Abort | Acknowledgement] = []
        self._consumers: dict[int, Consumer] = {}
        self._errors = ErrorLog(logger)
        self._load, self._stats = core.load, core.stats
        self._changed = threading.Condition()
        self._function: Callable[[], None] | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    # --- for everyone -------------------------------------------------------------------------------

    def submit(self, request: Request, consumer: Consumer, within: float | None = None) -> None:
        """Queue a request; see Engine.submit."""
        with self._changed:
            if self._closed:
                raise _stopped()
            self._shed_load(request, within)
            self._consumers[request.id] = consumer
            self._send(request)

    def abort(self, request_id: int) -> None:
        """Drop a request in whatever state it is; nothing more reaches its consumer."""
        with self._changed:
            if self._consumers.pop(request_id, None) is not None:
                self._send(Abort(request_id))

    def acknowledge(self, request_id: int, num_outputs: int) -> None:
        """Report how many outputs a consumer has read."""
        with self._changed:
            self._send(Acknowledgement(request_id, num_outputs))

    def stats(self) -> Stats:
        """Return how busy the engine is."""
        with self._changed:
            stats, queued = self._stats, len(self._queued())
            return replace(stats, waiting=stats.waiting + queued, active=stats.active + queued)

    def steps(self) -> list[StepRecord]:
        """Return the steps since the last call."""
        return taken(self.core.step_records)

    def alive(self) -> bool:
        """Return whether the thread still runs."""
        return self._thread.is_alive()

    def call(self, function: Callable[[], None]) -> None:
        """Have the engine's thread call `function` between two steps, at the latest after `IDLE_SECONDS` if it is idle.

        This takes no lock: a thread that hangs may hold it.
        """
        self._function = function

    def close(self) -> None:
        """Stop after the current step."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _send(self, message: Request | Abort | Acknowledgement) -> None:
        self._input.append(message)
        self._changed.notify()

    def _queued(self) -> list[Request]:
        return [message for message in self._input if isinstance(message, Request)]

    def _shed_load(self, request: Request, within: float | None) -> None:
        """Raise RateLimited for a request that cannot start before its deadline."""
        load, tokens = self._load, len(request.prompt.token_ids)
        waiting = [*load.waiting, *(len(one.prompt.token_ids) for one in self._queued())]
        earlier = [left for left in waiting if left <= tokens]
        sequences = load.placed + len(earlier) + (len(earlier) < len(waiting)) + 1  # one longer prompt always goes on
        answers = max(0, sequences - self.core.limits.max_num_seqs)
        load.estimate.shed_load(tokens_to_first(tokens, [*load.prefilling, *waiting]), answers, within)

    # --- the thread ---------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._receive():
                self._call()
                for outputs in self.core.step():
                    self._stats = self.core.stats  # a consumer that sees the end finds it in the figures
                    self._deliver(outputs)
        except Exception as error:  # not even a failed sequence could be released: the device is gone, for example
            self._errors.error("the engine has stopped", error)
            self._give_up()

    def _call(self) -> None:
        function, self._function = self._function, None
        if function is not None:
            function()

    def _receive(self) -> bool:
        """Wait for work, or for `IDLE_SECONDS`, and hand the core what has come in; returns whether to go on."""
        with self._changed:
            self._changed.wait_for(lambda: self._input or self._closed or self.core.scheduler.has_work, IDLE_SECONDS)
            for message in self._input:
                match message:
                    case Request():
                        self.core.add(message)
                    case Abort():
                        self.core.abort(message.request_id)
                    case Acknowledgement():
                        self.core.acknowledge(message.request_id, message.num_outputs)
            self._input.clear()
            self._load, self._stats = self.core.load, self.core.stats
            return not self._closed

    def _deliver(self, outputs: Collection[RequestOutput]) -> None:
        """Hand outputs to their consumers; one that fails is aborted and harms no other."""
        for output in outputs:
            done = output.finish is not None
            consumer = self._consumers.pop(output.request_id, None) if done else self._consumers.get(output.request_id)
            if consumer is None:  # aborted
                continue
            try:
                consumer(output)
            except Exception as error:
                self._errors.error("a consumer failed, its request is aborted", error)
                self.abort(output.request_id)

    def _give_up(self) -> None:
        with self._changed:
            self._closed = True
            left = list(self._consumers)
        self._deliver([RequestOutput(request_id, finish=_stopped()) for request_id in left])


def _stopped() -> UpstreamUnavailable:
    return UpstreamUnavailable("the decoder's engine has stopped and is being started again; try again")
