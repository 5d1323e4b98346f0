"""vLLM behind the engine's protocol: fused prompts go in as embeddings; scheduler, cache and kernels are vLLM's.

It runs in processes of its own. One thread here, with an event loop, hands it requests and passes its tokens on.
"""

import asyncio
import json
import logging
import os
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from collections.abc import Sequence as Rows
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors import safe_open
from torch import Tensor, nn

from autoglm.common.bundle import BundleError
from autoglm.common.error_log import ErrorLog
from autoglm.common.errors import InternalError, InvalidRequest, UpstreamUnavailable
from autoglm.decoder.engine.adapter_files import AdapterConfig
from autoglm.decoder.engine.lora import Adapter, Adapters
from autoglm.decoder.engine.matchers import JSON_STYLE
from autoglm.decoder.engine.protocol import Consumer, Stats, StepRecord, taken
from autoglm.decoder.engine.request import ChosenToken, GrammarSpec, Request
from autoglm.decoder.engine.sequence import Sequence
from autoglm.decoder.engine.throughput import ThroughputEstimate
from autoglm.decoder.engine.vllm_errors import given_up, refused
from autoglm.decoder.engine.vllm_meter import VllmMeter
from autoglm.fusion.protocol import Fusion

logger = logging.getLogger("autoglm.decoder")

EMBEDDINGS = "model.embed_tokens.weight"
NEVER = -100.0  # vLLM takes no lower bias
LEAST_TOP_P = 1e-6  # vLLM takes no 0, OpenAI does: the most likely token alone
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # of adapters, for which vLLM can reserve memory


@dataclass(frozen=True, slots=True)
class VllmOptions:
    """vLLM's engine arguments by their own names; all others have vLLM's defaults. `max_lora_rank` 0: no adapters;
    `threads` 0: on a CPU, as many as vLLM chooses."""

    dtype: str
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    kv_cache_memory_bytes: int | None
    enable_prefix_caching: bool
    max_loras: int
    max_lora_rank: int
    threads: int

    def as_arguments(self, folder: Path) -> dict[str, Any]:
        """Return vLLM's engine arguments for the decoder in `folder`."""
        own = ("max_loras", "max_lora_rank", "threads")
        given = {name: getattr(self, name) for name in self.__slots__ if name not in own}
        if self.max_lora_rank:
            given |= {"enable_lora": True, "max_loras": self.max_loras, "max_lora_rank": self.max_lora_rank}
        # Formats are checked with llguidance before they are sent; vLLM uses the same library, so it accepts them too.
        formats = {"backend": "guidance", "disable_any_whitespace": True}
        return given | {"model": str(folder), "enable_prompt_embeds": True, "structured_outputs_config": formats}


@dataclass(frozen=True, slots=True)
class EndTokens:
    """The ids that end an answer; those of them that have text, such as </answer>, which vLLM would take for text of a
    format; and the ids that no answer may hold."""

    stops: Rows[int]
    text_stops: Rows[int]
    never: Rows[int]

    def bias(self, has_format: bool) -> Mapping[int, float]:
        """Return the bias against the ids that an answer may not hold; one with a format ends with a special token."""
        return dict.fromkeys([*self.never, *(self.text_stops if has_format else ())], NEVER)


class VllmEngine:
    """vLLM's AsyncLLM. It reads the decoder's folder itself; here are only its embeddings, for the fusion.

    Where a request's reasoning has a budget, or its format begins after the reasoning, vLLM is called twice, the second
    time from its prefix cache; penalties of the second part count the first as prompt.
    """

    name = "vllm"

    def __init__(
        self,
        folder: Path,
        fusion: Fusion,
        options: VllmOptions,
        end_tokens: EndTokens,
        adapters: Adapters,
        device: torch.device,
    ) -> None:
        self._fusion, self._end_tokens, self._limit = fusion, end_tokens, options.max_num_seqs
        self._adapters = adapters
        table = embeddings(folder).to(device, getattr(torch, options.dtype))
        self.embed = nn.Embedding(table.shape[0], table.shape[1], _weight=table).requires_grad_(False)
        self._meter, self._estimate, self._errors = VllmMeter(), ThroughputEstimate(), ErrorLog(logger)
        self._running: dict[int, _Running] = {}  # by their requests' ids
        self._lock = threading.Lock()
        self._fusing = ThreadPoolExecutor(1, "fusion")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True)
        self._thread.start()
        start = self._start(folder, options, self._meter)
        self._vllm = asyncio.run_coroutine_threadsafe(start, self._loop).result()

    @staticmethod
    async def _start(folder: Path, options: VllmOptions, meter: VllmMeter) -> Any:
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # it would send usage statistics
        if options.threads:
            os.environ |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(options.threads)}
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        arguments = AsyncEngineArgs(**options.as_arguments(folder))
        return AsyncLLM.from_engine_args(arguments, stat_loggers=[lambda *_, **__: meter])

    # --- the protocol -------------------------------------------------------------------------------

    def submit(self, request: Request, consumer: Consumer, within: float | None = None) -> None:
        """Queue a request; see Engine.submit."""
        with self._lock:
            answers = len(self._running) + 1 - self._limit
            self._estimate.shed_load(len(request.prompt.token_ids), max(0, answers), within)
            running = self._running[request.id] = _Running(Sequence(request), consumer)
            running.task = asyncio.run_coroutine_threadsafe(self._run(running), self._loop)

    def abort(self, request_id: int) -> None:
        """Drop a request; vLLM frees what it holds."""
        with self._lock:
            running = self._running.pop(request_id, None)
        if running is not None and running.task is not None:
            running.task.cancel()

    def acknowledge(self, request_id: int, num_outputs: int) -> None:
        """Report how many outputs a consumer has read."""
        with self._lock:
            running = self._running.get(request_id)
        if running is not None:
            running.sequence.num_acknowledged = num_outputs
            self._loop.call_soon_threadsafe(running.resumed.set)

    def stats(self) -> Stats:
        """Return how busy vLLM is, as of its last step."""
        with self._lock:
            known = len(self._running)
            active = sum(not running.sequence.is_backlogged for running in self._running.values())
        if not known:
            return self._meter.idle
        return replace(self._meter.stats, running=min(known, self._meter.stats.running), active=active)

    def steps(self) -> list[StepRecord]:
        """Return the steps since the last call; vLLM does not say how long they took."""
        return taken(self._meter.step_records)

    def alive(self) -> bool:
        """Return whether vLLM's processes still answer."""
        return self._thread.is_alive() and not self._vllm.errored

    def call(self, function: Callable[[], None]) -> None:
        """Have the thread that talks to vLLM call `function`."""
        self._loop.call_soon_threadsafe(function)

    def close(self) -> None:
        """End vLLM's processes and the thread."""

        async def end() -> None:
            self._vllm.shutdown()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()

        asyncio.run_coroutine_threadsafe(end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._fusing.shutdown()

    # --- one answer ---------------------------------------------------------------------------------

    async def _run(self, running: "_Running") -> None:
        try:
            finish: str | Exception = await self._answer(running)
        except asyncio.CancelledError:
            raise
        except InvalidRequest as error:
            finish = error
        except Exception as error:
            self._errors.error("a sequence failed", error, running.sequence.request.ids)
            finish = error
        finally:
            with self._lock:
                busy = len(self._running) > self._limit
                self._running.pop(running.sequence.request.id, None)
        self._estimate.finished(busy)
        try:
            running.consumer(running.sequence.output_of(None, finish))
        except Exception as error:
            self._errors.error("a consumer failed at the end of its request", error)

    async def _answer(self, running: "_Running") -> str:
        """Pass vLLM's tokens on until the answer is over, and return why it is."""
        sequence = running.sequence
        prompt, thinking = await self._loop.run_in_executor(self._fusing, self._fuse, sequence), sequence.thinking
        while True:
            if thinking is not None and thinking.must_close:
                logprob = 0.0 if sequence.request.sampling.top_logprobs is not None else None
                if finish := await self._emit(running, ChosenToken(thinking.thinking.closes, logprob)):
                    return finish
            generated = torch.tensor(sequence.output, dtype=torch.long, device=prompt.device)
            async with aclosing(self._tokens(sequence, torch.cat([prompt, self.embed(generated)]))) as tokens:
                async for chosen in tokens:
                    if finish := await self._emit(running, chosen):
                        return finish
                    if self._starts_second_part(sequence, chosen.token_id):
                        break
                else:
                    return "stop"  # vLLM ended it without a token

    @torch.inference_mode()
    def _fuse(self, sequence: Sequence) -> Tensor:
        inputs = self._fusion.inputs(self.embed, sequence.request.prompt)
        if len(inputs.positions) > 1:
            raise InternalError("vLLM takes one row of rope positions, and the bundle's fusion gives three")
        sequence.gates = inputs.gates
        return inputs.embeddings

    @staticmethod
    def _starts_second_part(sequence: Sequence, token: int) -> bool:
        """Return whether vLLM has to be called again: the reasoning must end, or has ended and a format begins."""
        thinking = sequence.thinking
        if thinking is None:
            return False
        return thinking.must_close or (sequence.request.grammar is not None and token == thinking.thinking.closes)

    async def _emit(self, running: "_Running", chosen: ChosenToken) -> str | None:
        """Pass a token on once its consumer keeps up (backpressure); returns why the answer is over with it."""
        sequence, resumed = running.sequence, running.resumed
        while sequence.is_backlogged:
            resumed.clear()
            if sequence.is_backlogged:
                await resumed.wait()
        sequence.append_token(chosen.token_id)
        if sequence.thinking is not None:
            sequence.thinking.advance(chosen.token_id, first=len(sequence.output) == 1)
        finish = sequence.finish_reason(self._end_tokens.stops)
        if sequence.shows(finish):
            running.consumer(sequence.output_of(chosen))
        return finish

    async def _tokens(self, sequence: Sequence, inputs: Tensor) -> AsyncGenerator[ChosenToken, None]:
        """Yield vLLM's tokens after `inputs` [tokens, width]; raises InvalidRequest for what vLLM does not take and for
        an answer that cannot go on in its format, InternalError and UpstreamUnavailable when vLLM fails."""
        request = sequence.request
        token_ids = [*request.prompt.token_ids, *sequence.output]
        prompt = {
            "prompt_embeds": inputs.cpu(),
            "prompt_token_ids": token_ids,  # for the penalties alone
            "prompt_is_token_ids": [False] * len(token_ids),
            "cache_salt": request.salt.hex() or "-",
        }
        adapter = request.adapter and _lora_request(self._adapters.get(request.adapter.name))
        try:
            asked = self._vllm.generate(prompt, self._parameters(sequence), uuid4().hex, lora_request=adapter)
            async with aclosing(asked) as outputs:
                async for output in outputs:
                    self._note_start(sequence, output)
                    (part,) = output.outputs
                    for number, token in enumerate(part.token_ids):
                        yield _chosen(token, part.logprobs[number] if part.logprobs else None, sequence)
                    if part.finish_reason not in (None, "stop", "length"):
                        raise given_up(part.finish_reason, request)
        except ValueError as error:
            raise refused(error, request) from None
        except Exception as error:
            if not self._vllm.errored:
                raise
            raise UpstreamUnavailable("vLLM has stopped, and is started again; try again") from error

    def _note_start(self, sequence: Sequence, output: Any) -> None:
        if sequence.started:
            return
        sequence.started = output.metrics.scheduled_ts or time.monotonic()
        sequence.num_cached_tokens = output.num_cached_tokens or 0
        if fresh := sequence.num_tokens - sequence.num_cached_tokens:
            self._estimate.prefilled(fresh, max(0.0, time.monotonic() - sequence.started))

    def _parameters(self, sequence: Sequence) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        sampling, thinking, grammar = sequence.request.sampling, sequence.thinking, sequence.request.grammar
        silent = thinking is not None and thinking.inside
        form = None if silent or grammar is None else _format(grammar)
        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p or LEAST_TOP_P,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            seed=sampling.seed,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            repetition_penalty=sampling.repetition_penalty,
            logit_bias={**sampling.logit_bias, **self._end_tokens.bias(form is not None)} or None,
            logprobs=sampling.top_logprobs,
            max_tokens=sequence.max_new_tokens - len(sequence.output),
            stop_token_ids=list(self._end_tokens.stops),
            structured_outputs=form,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )


@dataclass(slots=True)
class _Running:
    """A request that is under way; `resumed` is set whenever its consumer has read some of its outputs."""

    sequence: Sequence
    consumer: Consumer
    resumed: asyncio.Event = field(default_factory=asyncio.Event)
    task: Future[None] | None = None


def embeddings(folder: Path) -> Tensor:
    """Return the decoder's embeddings [vocabulary, width] from a folder in Hugging Face's format."""
    index = folder / "model.safetensors.index.json"
    file = "model.safetensors"
    if index.exists():
        file = json.loads(index.read_text(encoding="utf-8"))["weight_map"][EMBEDDINGS]
    with safe_open(folder / file, "pt") as weights:
        tensor: Tensor = weights.get_tensor(EMBEDDINGS)
    return tensor


def max_lora_rank_of(folders: Iterable[Path]) -> int:
    """Return vLLM's `max_lora_rank` for the adapters in `folders`: the lowest rank it supports that fits them all,
    0 without adapters. Raises BundleError for a rank that it does not support."""
    highest = max((AdapterConfig.load(folder).rank for folder in folders), default=0)
    if highest > RANKS[-1]:
        raise BundleError(f"an adapter has rank {highest}, and vLLM supports {RANKS[-1]} at most; train a smaller one")
    return next(known for known in (0, *RANKS) if known >= highest)


def _lora_request(adapter: Adapter) -> Any:
    from vllm.lora.request import LoRARequest

    number = int(adapter.revision[:14], 16)  # vLLM tells them apart by it, in 63 bits
    return LoRARequest(adapter.name, number, str(adapter.folder))


def _format(grammar: GrammarSpec) -> Any:
    from vllm.sampling_params import StructuredOutputsParams

    if grammar.kind == "json_schema":
        assert isinstance(grammar.given, str)
        schema = json.loads(grammar.given)
        options = {**schema.get("x-guidance", {}), **JSON_STYLE}
        return StructuredOutputsParams(json=json.dumps({**schema, "x-guidance": options}))
    given = grammar.given if isinstance(grammar.given, str) else list(grammar.given)
    return StructuredOutputsParams(**{grammar.kind: given})


def _chosen(token: int, found: Any, sequence: Sequence) -> ChosenToken:
    """Return a token; `found` are vLLM's log probabilities by id, the chosen token's among them."""
    rivals = sequence.request.sampling.top_logprobs
    if rivals is None or found is None:
        return ChosenToken(token)
    ranked = sorted(found.items(), key=lambda pair: -pair[1].logprob)
    return ChosenToken(token, found[token].logprob, tuple((other, row.logprob) for other, row in ranked[:rivals]))
