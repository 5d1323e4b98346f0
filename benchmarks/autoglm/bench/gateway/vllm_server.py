"""vLLM's API server before the stub instead of an engine: all of `vllm serve` but what computes.

Run by a Python that has vLLM, as `python -m autoglm.bench.gateway.vllm_server PORT OPTION …`: the stub's gRPC port,
then options of `vllm serve`.
"""

import re
import sys
from collections.abc import AsyncIterator
from typing import Any, ClassVar, Self

import grpc
from vllm import CompletionOutput, RequestOutput
from vllm.engine.protocol import EngineClient
from vllm.entrypoints.launchers.api_server import entry
from vllm.renderers import renderer_from_config
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine import async_llm
from vllm.v1.engine.input_processor import InputProcessor

from autoglm.cli.isolation import LOOPBACK
from autoglm.v1.decoder_pb2 import DecoderMessage, DecoderPart, DecoderServiceGenerateRequest
from autoglm.v1.decoder_pb2_grpc import DecoderServiceStub

_WORK = re.compile(r"\{.*?\}")  # in what the chat template made of the message


async def _nothing(*_: Any, **__: Any) -> None: ...


Idle: Any = type("Idle", (EngineClient,), dict.fromkeys(EngineClient.__abstractmethods__, _nothing))


class StubClient(Idle):  # type: ignore[misc]
    """What vLLM's server takes for its engine: asks the stub as our gateway does."""

    port: ClassVar = 0  # of the stub
    is_running, is_stopped, errored = True, False, False

    def __init__(self, vllm_config: Any) -> None:
        self.vllm_config, self.model_config = vllm_config, vllm_config.model_config
        self.renderer = renderer_from_config(vllm_config)
        self.input_processor = InputProcessor(vllm_config, self.renderer)
        channel = grpc.aio.insecure_channel(f"{LOOPBACK}:{self.port}")
        self._decoder: Any = DecoderServiceStub(channel)

    @classmethod
    def from_vllm_config(cls, vllm_config: Any, **_: Any) -> Self:
        """Be made as vLLM's own is."""
        return cls(vllm_config)

    async def get_supported_tasks(self) -> tuple[str, ...]:
        """Return what it can do."""
        return ("generate",)

    async def generate(
        self, prompt: Any, sampling_params: Any, request_id: str, **_: Any
    ) -> AsyncIterator[RequestOutput]:
        """Yield the stub's words as they come or, where that is wanted, all at the end."""
        ids = prompt["prompt_token_ids"]
        asked = _WORK.search(prompt.get("prompt") or self.renderer.tokenizer.decode(ids))
        assert asked is not None
        message = DecoderMessage(parts=[DecoderPart(text=asked.group())])
        whole, text = sampling_params.output_kind == RequestOutputKind.FINAL_ONLY, ""
        async for said in self._decoder.Generate(DecoderServiceGenerateRequest(messages=[message])):
            end = said.HasField("finish")
            text = text + said.text if whole else said.text
            if end or not whole:
                output = CompletionOutput(0, text, [1], None, None, finish_reason="stop" if end else None)
                yield RequestOutput(request_id, None, ids, None, [output], finished=end)


if __name__ == "__main__":
    StubClient.port = int(sys.argv.pop(1))
    async_llm.AsyncLLM = StubClient  # which the server makes its client of
    entry.main()
