"""vLLM behind the engine's protocol: fused prompts go in as embeddings; scheduler, cache and kernels are vLLM's.

It runs in processes of its own. One thread here, with an event loop, hands it requests and passes its tokens on.
"""

import asyncio
import json
import logging
import os
import threading
import time
from collections.abc import AsyncGenerator
from collections.abc import Sequence as Rows
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors import safe_open
from torch import Tensor, nn

from autoglm.common.errors import InternalError
from autoglm.decoder.engine.grammar import JSON_STYLE, Grammar
from autoglm.decoder.engine.lora import Adapter
from autoglm.decoder.engine.protocol import Stats
from autoglm.decoder.engine.sequence import Chosen, Sequence
from autoglm.decoder.engine.throughput import Pace
from autoglm.fusion.gcma.fuse import fuse
from autoglm.fusion.gcma.model import GcmaFusion

logger = logging.getLogger("autoglm.decoder")

EMBEDDINGS = "model.embed_tokens.weight"
NEVER = -100.0  # vLLM takes no lower bias
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # of adapters, as vLLM makes room for them


@dataclass(frozen=True, slots=True)
class VllmOptions:
    """What vLLM is told when it starts, in its own words; the rest are its defaults. `max_lora_rank` 0: no adapters;
    `threads` 0: on a CPU, as many as vLLM takes by itself."""

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
        # Formats are checked here with llguidance; with the same library there, what passes here passes there.
        formats = {"backend": "guidance", "disable_any_whitespace": True}
        return given | {"model": str(folder), "enable_prompt_embeds": True, "structured_outputs_config": formats}


class VllmEngine:
    """vLLM's AsyncLLM. It reads the decoder's folder itself; here stand only its embeddings, for the fusion.

    `never` are the ids that no answer may hold. Where a request's reasoning has a budget, or its format begins
    behind the reasoning, the answer is asked for in two parts, the second from vLLM's prefix cache; penalties of the
    second part count the first as prompt.
    """

    def __init__(
        self, folder: Path, fusion: GcmaFusion, options: VllmOptions, stops: Rows[int], never: Rows[int]
    ) -> None:
        self._fusion, self._stops, self._limit = fusion, list(stops), options.max_num_seqs
        self._never = dict.fromkeys(never, NEVER)
        table = embeddings(folder).to(fusion.out.weight)
        self.embed = nn.Embedding(table.shape[0], table.shape[1], _weight=table).requires_grad_(False)
        self._meter, self._pace = _Meter(), Pace()
        self._asked: dict[Sequence, _Asked] = {}
        self._lock = threading.Lock()
        self._fusing = ThreadPoolExecutor(1, "fusion")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True)
        self._thread.start()
        start = self._start(folder, options, self._meter)
        self._vllm = asyncio.run_coroutine_threadsafe(start, self._loop).result()

    @staticmethod
    async def _start(folder: Path, options: VllmOptions, meter: "_Meter") -> Any:
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # it would call home
        if options.threads:
            os.environ |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(options.threads)}
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        arguments = AsyncEngineArgs(**options.as_arguments(folder))
        return AsyncLLM.from_engine_args(arguments, stat_loggers=[lambda *_, **__: meter])

    # --- the protocol -------------------------------------------------------------------------------

    def submit(self, sequence: Sequence, within: float | None = None) -> None:
        """Queue a sequence; raises RateLimited when its first token is not to be expected `within` so many seconds."""
        with self._lock:
            crowd = len(self._asked) + 1 - self._limit
            self._pace.admit(sequence.known, max(0, crowd), within)
            room = asyncio.Event()
            task = asyncio.run_coroutine_threadsafe(self._run(sequence, room), self._loop)
            self._asked[sequence] = _Asked(task, room)

    def abort(self, sequence: Sequence) -> None:
        """Drop a sequence; vLLM frees what it holds."""
        sequence.aborted = True
        with self._lock:
            asked = self._asked.pop(sequence, None)
        if asked is not None:
            asked.task.cancel()

    def wake(self) -> None:
        """Let those go on whose consumers have room again."""
        self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        with self._lock:
            asked = list(self._asked.items())
        for sequence, one in asked:
            if not sequence.full():
                one.room.set()

    def stats(self) -> Stats:
        """Return how busy vLLM is, as of its last step."""
        with self._lock:
            known = sum(not sequence.aborted for sequence in self._asked)
        return replace(self._meter.stats, running=min(known, self._meter.stats.running)) if known else self._meter.idle

    def alive(self) -> bool:
        """Return whether vLLM's processes still answer."""
        return self._thread.is_alive() and not self._vllm.errored

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

    async def _run(self, sequence: Sequence, room: asyncio.Event) -> None:
        try:
            reason: str | Exception = await self._answer(sequence, room)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            logger.error("a sequence failed: %s", type(error).__name__, exc_info=error)
            reason = error
        finally:
            with self._lock:
                busy = len(self._asked) > self._limit
                self._asked.pop(sequence, None)
        self._pace.end(busy)
        sequence.end(reason)

    async def _answer(self, sequence: Sequence, room: asyncio.Event) -> str:
        """Pass vLLM's tokens on until the answer is over, and return why it is."""
        prompt, thinking = await self._loop.run_in_executor(self._fusing, self._fuse, sequence), sequence.thinking
        while True:
            if thinking is not None and thinking.over:
                close = Chosen(thinking.closes, 0.0 if sequence.sampling.top_logprobs is not None else None)
                if ended := await self._give(sequence, close, room):
                    return ended
            said = torch.tensor(sequence.output, dtype=torch.long, device=prompt.device)
            async with aclosing(self._tokens(sequence, torch.cat([prompt, self.embed(said)]))) as tokens:
                async for chosen in tokens:
                    if ended := await self._give(sequence, chosen, room):
                        return ended
                    if self._turns(sequence, chosen.token_id):
                        break
                else:
                    return "stop"  # vLLM ended it without saying a token

    @torch.inference_mode()
    def _fuse(self, sequence: Sequence) -> Tensor:
        fused = fuse(self._fusion, self.embed, sequence.prompt)
        sequence.gates = fused.gates
        return fused.embeddings

    @staticmethod
    def _turns(sequence: Sequence, token: int) -> bool:
        """Return whether what follows has to be asked for anew: the reasoning must end, or has and a format begins."""
        thinking = sequence.thinking
        return thinking is not None and (thinking.over or (sequence.grammar is not None and token == thinking.closes))

    async def _give(self, sequence: Sequence, chosen: Chosen, room: asyncio.Event) -> str:
        """Pass a token on, when its consumer has room; returns why the answer is over with it, or ""."""
        while sequence.full():
            room.clear()
            if sequence.full():
                await room.wait()
        sequence.take(chosen.token_id)
        if sequence.thinking is not None:
            sequence.thinking.note(chosen.token_id, first=len(sequence.output) == 1)
        return sequence.tell(chosen, self._stops)

    async def _tokens(self, sequence: Sequence, inputs: Tensor) -> AsyncGenerator[Chosen, None]:
        """Yield vLLM's tokens behind `inputs` [tokens, width]; raises InternalError when it gives up."""
        token_ids = [*sequence.prompt.token_ids, *sequence.output]
        prompt = {
            "prompt_embeds": inputs.cpu(),
            "prompt_token_ids": token_ids,  # for the penalties alone
            "prompt_is_token_ids": [False] * len(token_ids),
            "cache_salt": sequence.salt.hex() or "-",
        }
        adapter = sequence.adapter and _request(sequence.adapter)
        asked = self._vllm.generate(prompt, self._parameters(sequence), uuid4().hex, lora_request=adapter)
        async with aclosing(asked) as outputs:
            async for output in outputs:
                self._note_start(sequence, output)
                (part,) = output.outputs
                for place, token in enumerate(part.token_ids):
                    yield _chosen(token, part.logprobs[place] if part.logprobs else None, sequence)
                if part.finish_reason not in (None, "stop", "length"):
                    raise InternalError(f"vLLM gave the request up: {part.finish_reason}")

    def _note_start(self, sequence: Sequence, output: Any) -> None:
        if sequence.started:
            return
        sequence.started = output.metrics.scheduled_ts or time.monotonic()
        sequence.cached = output.num_cached_tokens or 0
        if fresh := sequence.known - sequence.cached:
            self._pace.read(fresh, max(0.0, time.monotonic() - sequence.started))

    def _parameters(self, sequence: Sequence) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        sampling, thinking = sequence.sampling, sequence.thinking
        silent = thinking is not None and thinking.inside
        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            seed=sampling.seed,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            repetition_penalty=sampling.repetition_penalty,
            logit_bias={**sampling.logit_bias, **self._never} or None,
            logprobs=sampling.top_logprobs,
            max_tokens=sequence.max_tokens - len(sequence.output),
            stop_token_ids=self._stops,
            structured_outputs=None if silent or sequence.grammar is None else _format(sequence.grammar),
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request that is under way, and whether its consumer has room."""

    task: Future[None]
    room: asyncio.Event


class _Meter:
    """A stat logger of vLLM's; not a subclass of its base, which is there only where vLLM is."""

    def __init__(self) -> None:
        self.stats = Stats()

    @property
    def idle(self) -> Stats:
        """Return what has been done, with nothing under way: vLLM does not report when its last request was aborted."""
        return replace(self.stats, running=0, waiting=0, cache_usage=0.0)

    def record(self, scheduler_stats: Any, iteration_stats: Any, *_: Any, **__: Any) -> None:
        """Take what vLLM says of a step."""
        if scheduler_stats is None:
            return
        prefixes, put_back = scheduler_stats.prefix_cache_stats, getattr(iteration_stats, "num_preempted_reqs", 0)
        self.stats = Stats(
            scheduler_stats.num_running_reqs,
            scheduler_stats.num_waiting_reqs,
            scheduler_stats.kv_cache_usage,
            self.stats.prefix_queries + prefixes.queries,
            self.stats.prefix_hits + prefixes.hits,
            self.stats.preemptions + put_back,
        )

    def __getattr__(self, name: str) -> Any:  # log, log_engine_initialized and what later versions call
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_, **__: None


def embeddings(folder: Path) -> Tensor:
    """Return the decoder's embeddings [vocabulary, width] from a folder in Hugging Face's format."""
    index = folder / "model.safetensors.index.json"
    file = "model.safetensors"
    if index.exists():
        file = json.loads(index.read_text(encoding="utf-8"))["weight_map"][EMBEDDINGS]
    with safe_open(folder / file, "pt") as weights:
        tensor: Tensor = weights.get_tensor(EMBEDDINGS)
    return tensor


def rank_room(folders: Rows[Path]) -> int:
    """Return what vLLM has to be told for the adapters in `folders`: the least rank it knows that holds them all."""
    ranks = [json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["r"] for folder in folders]
    return next(known for known in RANKS if known >= max(ranks)) if ranks else 0


def _request(adapter: Adapter) -> Any:
    from vllm.lora.request import LoRARequest

    number = int(adapter.revision[:14], 16)  # vLLM tells them apart by it, in 63 bits
    return LoRARequest(adapter.name, number, str(adapter.folder))


def _format(grammar: Grammar) -> Any:
    from vllm.sampling_params import StructuredOutputsParams

    if grammar.kind == "json_schema":
        assert isinstance(grammar.given, str)
        return StructuredOutputsParams(json=json.dumps({**json.loads(grammar.given), "x-guidance": JSON_STYLE}))
    return StructuredOutputsParams(**{grammar.kind: grammar.given})


def _chosen(token: int, found: Any, sequence: Sequence) -> Chosen:
    """Return a token; `found` are vLLM's log probabilities by id, the chosen token's among them."""
    rivals = sequence.sampling.top_logprobs
    if rivals is None or found is None:
        return Chosen(token)
    ranked = sorted(found.items(), key=lambda pair: -pair[1].logprob)
    return Chosen(token, found[token].logprob, tuple((other, row.logprob) for other, row in ranked[:rivals]))
