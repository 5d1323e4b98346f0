"""The formats of requests: what is new is read and tried in a process of its own, and the last ones are known."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from cachetools import LRUCache

from autoglm.common.deadlines import Deadline
from autoglm.common.errors import RateLimited
from autoglm.decoder.engine.request import GrammarSpec
from autoglm.decoder.format_spec import has_format, requires_call
from autoglm.decoder.tool_functions import Marks
from autoglm.decoder.trials import Trials
from autoglm.v1 import decoder_pb2

KNOWN = 32  # formats whose grammars need not be read again


class Formats:
    """Reads the formats of requests for one tokenizer; any thread may ask.

    `stops` are the tokens that end an answer, `marks` stand around function calls, and `busy` says whether no more
    grammars of clients can be taken.
    """

    def __init__(self, tokenizer: Path, stops: Sequence[int], marks: Marks, busy: Callable[[], bool]) -> None:
        self.trials, self._busy = Trials(tokenizer, stops, marks), busy
        self._known: LRUCache[bytes, GrammarSpec] = LRUCache(KNOWN)
        self._lock = threading.Lock()

    def read(
        self,
        message: decoder_pb2.DecoderServiceGenerateRequest,
        deadline: Deadline = Deadline(),  # noqa: B008 - it is frozen
    ) -> GrammarSpec | None:
        """Return what the answer to a request has to match; None if it may be anything.

        Raises InvalidRequest, which names the field or the keyword, for what is no grammar or takes too much to
        compile, and for a strict schema that cannot be enforced in full; RateLimited while too many formats are being
        compiled; DeadlineExceeded.
        """
        if not has_format(message):
            return None
        if self._busy() and not requires_call(message) and message.sampling.HasField("grammar"):
            raise RateLimited("other grammars take all the time there is for grammars; try again")
        asked = _format_of(message)
        key = asked.SerializeToString(deterministic=True)
        with self._lock:
            spec = self._known.get(key)
        if spec is None:
            spec = self.trials.read(asked, float("inf") if deadline.at is None else deadline.at)
            with self._lock:
                self._known[key] = spec
        return spec


def _format_of(message: decoder_pb2.DecoderServiceGenerateRequest) -> decoder_pb2.DecoderServiceGenerateRequest:
    """Return the part of a request that its format depends on."""
    asked = decoder_pb2.DecoderServiceGenerateRequest()
    if requires_call(message):
        asked.tools.extend(message.tools)
        asked.tool_choice.CopyFrom(message.tool_choice)
        if message.HasField("parallel_tool_calls"):
            asked.parallel_tool_calls = message.parallel_tool_calls
        return asked
    kind = message.sampling.WhichOneof("structured_output")
    if kind == "choice":
        asked.sampling.choice.CopyFrom(message.sampling.choice)
    elif kind is not None:
        setattr(asked.sampling, kind, getattr(message.sampling, kind))
    asked.sampling.json_schema_strict = message.sampling.json_schema_strict
    return asked
