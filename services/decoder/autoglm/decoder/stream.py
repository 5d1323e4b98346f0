"""One answer on its way out: from the engine's thread to the messages of DecoderService.Generate."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable

from tokenizers import Tokenizer

from autoglm.common.deadlines import seconds_to_duration
from autoglm.common.modalities import BY_KIND
from autoglm.decoder.detokenizer import Detokenizer, Reasoning, StopStrings, token_bytes
from autoglm.decoder.engine.sequence import Chosen, Finished, Sequence
from autoglm.decoder.tools import ToolCalls
from autoglm.fusion.prompt import Prompt
from autoglm.v1 import decoder_pb2, generation_pb2

_REASONS = {"stop": generation_pb2.FINISH_REASON_STOP, "length": generation_pb2.FINISH_REASON_LENGTH}


UNREAD = 256  # events that may wait for a client before its answer is laid aside


class Inbox:
    """Where the engine's thread leaves events for one coroutine of the event loop.

    `drained` is called when a full inbox has been emptied: its sequence can go on.
    """

    def __init__(self, drained: Callable[[], None]) -> None:
        self._loop, self._drained = asyncio.get_running_loop(), drained
        self._queue: asyncio.Queue[Chosen | Finished] = asyncio.Queue()
        self._put = self._got = 0  # each written by one side alone

    def put(self, event: Chosen | Finished) -> None:
        """Leave an event; called from the engine's thread."""
        self._put += 1
        self._loop.call_soon_threadsafe(self._queue.put_nowait, event)

    def full(self) -> bool:
        """Return whether the client is too far behind for more; called from the engine's thread."""
        return self._put - self._got >= UNREAD

    async def get(self) -> Chosen | Finished:
        """Return the next event."""
        event = await self._queue.get()
        full = self.full()
        self._got += 1
        if full and not self.full():
            self._drained()
        return event


class Answer:
    """Turns the events of one sequence into response messages: with `split` reasoning comes apart, with `calls` those
    of functions do, which are looked for behind the reasoning alone."""

    def __init__(
        self, tokenizer: Tokenizer, prompt: Prompt, stop: tuple[str, ...], split: bool, calls: ToolCalls | None = None
    ) -> None:
        self._tokenizer, self._prompt = tokenizer, prompt
        self._text = Detokenizer(tokenizer)
        self._stops = StopStrings(stop)
        self._split, self._calls = split, calls
        self._reasoning = Reasoning(marks=not split) if split or calls else None
        self._count = self._thoughts = 0

    async def messages(self, inbox: Inbox) -> AsyncIterator[tuple[decoder_pb2.DecoderServiceGenerateResponse, str]]:
        """Yield each message with "" and, once the answer is over, a last one with why it ended."""
        if self._prompt.echo:
            yield self._message(self._prompt.echo), ""
        while isinstance(event := await inbox.get(), Chosen):
            self._count += 1
            text, stopped = self._stops.feed(self._text.feed(event.token_id))
            message = self._message(text)
            self._thoughts += bool(message.reasoning)
            if event.logprob is not None:
                message.logprobs.append(self._logprobs(event.token_id, event.logprob, event.top))
            if stopped or (self._calls is not None and self._calls.over):
                self._add(message, "", last=True)
                yield message, "stop"
                return
            if message.ByteSize():
                yield message, ""
        if isinstance(event.reason, Exception):
            raise event.reason
        last = decoder_pb2.DecoderServiceGenerateResponse()
        tail, _ = self._stops.feed(self._text.flush())
        self._add(last, tail + self._stops.flush(), last=True)
        yield last, event.reason

    def finish(self, sequence: Sequence, reason: str) -> decoder_pb2.DecoderFinish:
        """Return what closes the answer."""
        ended = time.monotonic()
        started, first = sequence.started or ended, sequence.first_token or ended
        return decoder_pb2.DecoderFinish(
            finish_reason=self._finish_reason(reason),
            usage=generation_pb2.Usage(
                prompt_tokens=len(self._prompt.token_ids),
                completion_tokens=self._count,
                cached_tokens=sequence.cached,
                image_tokens=self._prompt.count("image"),
                audio_tokens=self._prompt.count("audio"),
                reasoning_tokens=self._thoughts,
            ),
            gates=[generation_pb2.Gate(modality=BY_KIND[k].number, mean=v) for k, v in sequence.gates.items()],
            queue=seconds_to_duration(started - sequence.submitted),
            prefill=seconds_to_duration(first - started),
            decode=seconds_to_duration(ended - first),
        )

    def _finish_reason(self, reason: str) -> generation_pb2.FinishReason.ValueType:
        called = self._calls is not None and self._calls.made > 0
        return generation_pb2.FINISH_REASON_TOOL_CALLS if called and reason == "stop" else _REASONS[reason]

    def _message(self, text: str) -> decoder_pb2.DecoderServiceGenerateResponse:
        message = decoder_pb2.DecoderServiceGenerateResponse()
        self._add(message, text)
        return message

    def _add(self, message: decoder_pb2.DecoderServiceGenerateResponse, text: str, last: bool = False) -> None:
        """Put what `text` completes into `message`, and behind the last text what still waits."""
        reasoning = ""
        if self._reasoning is not None:
            text, reasoning = self._reasoning.feed(text)
            if last:
                rest = self._reasoning.flush()
                text, reasoning = text + rest[0], reasoning + rest[1]
        if self._calls is not None:
            text, calls = self._calls.feed(text)
            text += self._calls.flush() if last else ""
            message.tool_calls.extend(calls)
        message.text += text if self._split else reasoning + text
        message.reasoning += reasoning if self._split else ""

    def _logprobs(
        self, token_id: int, logprob: float, top: tuple[tuple[int, float], ...]
    ) -> generation_pb2.LogprobEntry:
        rows = [self._logprob(*pair) for pair in ((token_id, logprob), *top)]
        return generation_pb2.LogprobEntry(chosen=rows[0], top=rows[1:])

    def _logprob(self, token_id: int, value: float) -> generation_pb2.TokenLogprob:
        data = token_bytes(self._tokenizer, token_id)
        return generation_pb2.TokenLogprob(token=data.decode(errors="replace"), logprob=value, token_bytes=data)
