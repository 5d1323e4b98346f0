"""vLLM, where it is installed, asked as the others are: token ids in, tokens out, and when each came."""

import asyncio
import os
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from transformers.models.glm.modeling_glm import GlmForCausalLM

from autoglm.bench.engine.peers import Answers

CACHE = 2**30  # bytes of keys and values, room for all that is asked


class Vllm:
    """vLLM's AsyncLLM as `vllm serve` runs it: compiled, its engine in a process of its own. Prefix caching is off, as
    it is for the other side."""

    def __init__(self, model: GlmForCausalLM, streams: int, context: int, threads: int) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="autoglm-bench-")
        model.save_pretrained(self._folder.name)
        os.environ |= {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
        if model.device.type == "cpu":
            os.environ |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(threads)}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._asked = 0
        start = self._start(str(model.dtype), streams, context)
        self._vllm = asyncio.run_coroutine_threadsafe(start, self._loop).result()

    async def _start(self, dtype: str, streams: int, context: int) -> Any:
        from vllm import AsyncEngineArgs, __version__
        from vllm.v1.engine.async_llm import AsyncLLM

        arguments = AsyncEngineArgs(
            model=self._folder.name, skip_tokenizer_init=True, dtype=dtype.removeprefix("torch."),
            max_model_len=context, max_num_seqs=streams, kv_cache_memory_bytes=CACHE, enable_prefix_caching=False,
        )  # fmt: skip
        self.version = str(__version__)
        return AsyncLLM.from_engine_args(arguments)

    def answer(self, prompts: Sequence[Sequence[int]], tokens: int) -> Answers:
        """Return the likeliest tokens after each prompt."""
        return asyncio.run_coroutine_threadsafe(self._answer(prompts, tokens), self._loop).result()

    async def _answer(self, prompts: Sequence[Sequence[int]], tokens: int) -> Answers:
        start = time.perf_counter()
        said = await asyncio.gather(*(self._one(prompt, tokens) for prompt in prompts))
        seconds = time.perf_counter() - start
        return Answers([ids for ids, _ in said], seconds, [stamps for _, stamps in said])

    async def _one(self, prompt: Sequence[int], tokens: int) -> tuple[list[int], list[float]]:
        ids, stamps = list[int](), list[float]()
        async for more in self._stream(prompt, tokens):
            ids += more
            stamps += [time.perf_counter()] * len(more)
        return ids, stamps

    async def _stream(self, prompt: Sequence[int], tokens: int) -> AsyncIterator[Sequence[int]]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        self._asked += 1
        parameters = SamplingParams(
            temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False, output_kind=RequestOutputKind.DELTA
        )
        given = {"prompt_token_ids": list(prompt)}
        async for output in self._vllm.generate(given, parameters, request_id=str(self._asked)):
            yield output.outputs[0].token_ids

    def close(self) -> None:
        """End vLLM's processes."""
        self._loop.call_soon_threadsafe(self._vllm.shutdown)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        del self._vllm  # it would look for a loop when the interpreter ends
        self._folder.cleanup()
