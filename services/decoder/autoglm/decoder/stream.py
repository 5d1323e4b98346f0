"""How an answer gets out: from the engine's thread to the messages of DecoderService.Generate."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable

from autoglm.common.deadlines import seconds_to_duration
from autoglm.common.modalities import BY_KIND
from autoglm.common.tracing import Span
from autoglm.decoder.detokenizer import Detokenizer, Reasoning, StopStrings, special_tokens, token_bytes
from autoglm.decoder.engine.request import ChosenToken, PrefillStats, Request, RequestOutput
from autoglm.decoder.tools import ToolCalls
from autoglm.fusion.compose import Composer
from autoglm.fusion.prompt import Prompt
from autoglm.v1 import decoder_pb2, generation_pb2

_REASONS = {"stop": generation_pb2.FINISH_REASON_STOP, "length": generation_pb2.FINISH_REASON_LENGTH}

MAX_BACKLOG = 256  # outputs that may wait for a client before its request is paused
ACKNOWLEDGED = 64  # outputs that are acknowledged together


class TokenQueue:
    """Carries the outputs of one request from the engine's thread to a coroutine of the event loop.

    Backpressure: `acknowledge` is told now and then how many outputs have been read, so that the engine can pause a
    request whose client does not keep up.
    """

    def __init__(self, acknowledge: Callable[[int], None]) -> None:
        self._loop, self._acknowledge = asyncio.get_running_loop(), acknowledge
        self._queue: asyncio.Queue[RequestOutput] = asyncio.Queue()
        self._num_read = 0

    def put(self, output: RequestOutput) -> None:
        """Add an output; called from the engine's thread."""
        self._loop.call_soon_threadsafe(self._queue.put_nowait, output)

    async def get(self) -> RequestOutput:
        """Return the next output."""
        output = await self._queue.get()
        self._num_read += 1
        if self._num_read % ACKNOWLEDGED == 0:
            self._acknowledge(self._num_read)
        return output


class ResponseBuilder:
    """Turns the outputs of one request into response messages. With `split` the reasoning comes apart, with `calls`
    function calls do, which are looked for after the reasoning alone."""

    def __init__(
        self,
        composer: Composer,
        prompt: Prompt,
        stops: StopStrings,
        split: bool,
        calls: ToolCalls | None = None,
    ) -> None:
        self._tokenizer, self._prompt = composer.tokenizer, prompt
        self._text = Detokenizer(composer.tokenizer)
        self._stops = stops
        self._hidden = special_tokens(composer.tokenizer) if stops.included else frozenset()
        self._split, self._calls = split, calls
        self._reasoning = Reasoning(composer.layout.thinking, keeps_marks=not split) if split or calls else None
        self._count = self._thoughts = 0
        self._prefill: PrefillStats | None = None

    @classmethod
    def of(
        cls, message: decoder_pb2.DecoderServiceGenerateRequest, request: Request, composer: Composer
    ) -> "ResponseBuilder":
        """Return what builds the responses to `message`, which was read as `request`."""
        sampling, calls = request.sampling, ToolCalls.of(message, composer.layout.tool_call)
        stops = StopStrings(sampling.stop, sampling.include_stop_str_in_output)
        return cls(composer, request.prompt, stops, message.return_reasoning, calls)

    async def messages(self, queue: TokenQueue) -> AsyncIterator[decoder_pb2.DecoderServiceGenerateResponse]:
        """Yield each message as soon as it has something, and last the one with `finish`; raises what ended the
        request, if an error did."""
        if self._prompt.echo:
            yield self._message(self._prompt.echo)
        finish: str | Exception | None = None
        while finish is None:
            output = await queue.get()
            self._prefill, finish = self._prefill or output.prefill, output.finish
            if output.token is None or output.token.token_id in self._hidden:
                continue
            message, ended = self._step(output.token)
            if ended:
                self._add(message, "", last=True)
                message.finish.CopyFrom(self._finish("stop"))
                yield message
                return
            if message.ByteSize():
                yield message
        if isinstance(finish, Exception):
            raise finish
        yield self._last(finish)

    def trace(self, span: Span) -> None:
        """Record below `span` when the request waited, was read and was answered, up to now. That says nothing of a
        request that ended before its first token."""
        if (prefill := self._prefill) is None or not span.is_recorded:
            return
        started, length = prefill.ended - prefill.prefill, len(self._prompt.token_ids)
        prompt = {"autoglm.prompt_tokens": length, "autoglm.cached_tokens": prefill.num_cached_tokens}
        span.record("queue", started - prefill.queue, started)
        span.record("prefill", started, prefill.ended, prompt)
        span.event("first token", prefill.ended)
        span.record("decode", prefill.ended, time.monotonic(), {"autoglm.completion_tokens": self._count})

    def _step(self, token: ChosenToken) -> tuple[decoder_pb2.DecoderServiceGenerateResponse, bool]:
        """Return what a token adds, and whether a stop string or a call ends the answer."""
        self._count += 1
        text, stopped = self._stops.feed(self._text.feed(token.token_id))
        message = self._message(text)
        self._thoughts += bool(message.reasoning)
        if token.logprob is not None:
            message.logprobs.append(self._logprobs(token.token_id, token.logprob, token.top))
        return message, stopped or (self._calls is not None and self._calls.over)

    def _last(self, reason: str) -> decoder_pb2.DecoderServiceGenerateResponse:
        message = decoder_pb2.DecoderServiceGenerateResponse()
        tail, _ = self._stops.feed(self._text.flush())
        self._add(message, tail + self._stops.flush(), last=True)
        message.finish.CopyFrom(self._finish(reason))
        return message

    def _finish(self, reason: str) -> decoder_pb2.DecoderFinish:
        """Return what closes the answer; only called after an output has come."""
        assert self._prefill is not None
        prefill = self._prefill
        return decoder_pb2.DecoderFinish(
            finish_reason=self._finish_reason(reason),
            usage=generation_pb2.Usage(
                prompt_tokens=len(self._prompt.token_ids),
                completion_tokens=self._count,
                cached_tokens=prefill.num_cached_tokens,
                image_tokens=self._prompt.count("image"),
                audio_tokens=self._prompt.count("audio"),
                reasoning_tokens=self._thoughts,
            ),
            gates=[generation_pb2.Gate(modality=BY_KIND[k].number, mean=v) for k, v in prefill.gates.items()],
            queue=seconds_to_duration(prefill.queue),
            prefill=seconds_to_duration(prefill.prefill),
            decode=seconds_to_duration(time.monotonic() - prefill.ended),
        )

    def _finish_reason(self, reason: str) -> generation_pb2.FinishReason.ValueType:
        called = self._calls is not None and self._calls.made > 0
        return generation_pb2.FINISH_REASON_TOOL_CALLS if called and reason == "stop" else _REASONS[reason]

    def _message(self, text: str) -> decoder_pb2.DecoderServiceGenerateResponse:
        message = decoder_pb2.DecoderServiceGenerateResponse()
        self._add(message, text)
        return message

    def _add(self, message: decoder_pb2.DecoderServiceGenerateResponse, text: str, last: bool = False) -> None:
        """Put what `text` completes into `message`, and after the last text what still waits."""
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
