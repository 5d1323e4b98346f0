"""What clients see when vLLM refuses or ends a request. vLLM itself is a fake here: it does so when it is told to."""

import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from queue import SimpleQueue
from types import MappingProxyType, ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from autoglm.common.bundle import default_bundle
from autoglm.common.errors import InternalError, InvalidRequest, MeshError, UpstreamUnavailable
from autoglm.decoder.engine.lora import Adapter, Adapters
from autoglm.decoder.engine.request import GrammarSpec, Request, RequestOutput, SamplingConfig
from autoglm.decoder.engine.vllm_engine import EndTokens, VllmEngine, VllmOptions
from autoglm.fusion.prompt import Prompt
from autoglm.fusion.protocol import ChunkedInputs, Inputs

FORM = GrammarSpec("regex", "a+", "sampling.regex")
OPTIONS = VllmOptions("float32", 64, 1, 64, 2**20, True, 0, 0, 0)


class ParameterError(ValueError):
    """vLLM's validation error, which names a parameter."""

    def __init__(self, text: str, parameter: str | None) -> None:
        super().__init__(text)
        self.parameter = parameter


class FakeVllm:
    """AsyncLLM: refuses the parameters, fails, or ends an answer after one token."""

    error: Exception | None = None
    reason: str | None = None
    errored = False

    async def generate(self, *_: Any, **__: Any) -> AsyncIterator[Any]:
        if self.error is not None:
            raise self.error
        part = SimpleNamespace(token_ids=[5], logprobs=None, finish_reason=self.reason)
        yield SimpleNamespace(outputs=[part], metrics=SimpleNamespace(scheduled_ts=1.0), num_cached_tokens=0)

    def shutdown(self) -> None: ...


class PlainFusion:
    """Embeds text alone."""

    media_widths: Mapping[Any, int] = MappingProxyType({})
    text_width = width = 1

    def inputs(self, embed: nn.Embedding, prompt: Prompt, after: int = 0) -> Inputs:
        embeddings = embed(torch.tensor(prompt.token_ids[after:]))
        return Inputs(embeddings, torch.arange(len(embeddings))[None], len(embeddings))

    def chunked_inputs(self, *_: Any) -> ChunkedInputs:
        raise NotImplementedError

    def pool_text(self, *_: Any) -> torch.Tensor:
        raise NotImplementedError

    def pool_media(self, *_: Any) -> torch.Tensor:
        raise NotImplementedError


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> FakeVllm:
    made = FakeVllm()
    contents: dict[str, dict[str, Any]] = {
        "vllm": {"AsyncEngineArgs": SimpleNamespace, "SamplingParams": SimpleNamespace},
        "vllm.sampling_params": {
            "RequestOutputKind": SimpleNamespace(DELTA=1),
            "StructuredOutputsParams": SimpleNamespace,
        },
        "vllm.v1": {},
        "vllm.v1.engine": {},
        "vllm.v1.engine.async_llm": {"AsyncLLM": SimpleNamespace(from_engine_args=lambda *_, **__: made)},
    }
    for name, values in contents.items():
        module = ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
    return made


def no_adapter(name: str) -> Adapter:
    raise KeyError(name)


@pytest.fixture
def engine(vllm: FakeVllm) -> Iterator[VllmEngine]:
    ends, adapters = EndTokens((1,), (), ()), Adapters(no_adapter, (), 1)
    made = VllmEngine(default_bundle() / "decoder", PlainFusion(), OPTIONS, ends, adapters, torch.device("cpu"))
    yield made
    made.close()


def end_of(engine: VllmEngine, grammar: GrammarSpec | None = None) -> MeshError:
    """Return the error that ends a request."""
    outputs: SimpleQueue[RequestOutput] = SimpleQueue()
    prompt = Prompt([7, 8], (), "")
    engine.submit(Request(prompt, SamplingConfig(max_tokens=4), 64, grammar=grammar), outputs.put)
    while (finish := outputs.get(timeout=60).finish) is None:
        pass
    assert isinstance(finish, MeshError), finish
    return finish


@pytest.mark.parametrize(
    ("error", "grammar", "param"),
    [
        (ValueError("Grammar error: unknown"), FORM, "sampling.regex"),
        (ParameterError("logit_bias has ids that are not there", "logit_bias"), FORM, "sampling.logit_bias"),
        (ParameterError("odd", "detokenize"), None, None),
        (ValueError("The prompt is longer than the maximum model length"), None, None),
    ],
)
def test_what_vllm_does_not_take_is_the_clients_to_change(
    vllm: FakeVllm, engine: VllmEngine, caplog: pytest.LogCaptureFixture, error: ValueError, grammar: Any, param: Any
) -> None:
    vllm.error = error
    told = end_of(engine, grammar)
    assert (type(told), told.param) == (InvalidRequest, param)
    assert told.message == f"vLLM does not take this request: {error}"
    assert not caplog.records


@pytest.mark.parametrize("reason", ["abort", "error"])
def test_an_answer_without_a_way_on_in_its_format(vllm: FakeVllm, engine: VllmEngine, reason: str) -> None:
    vllm.reason = reason
    told = end_of(engine, FORM)
    assert (type(told), told.param) == (InvalidRequest, "sampling.regex")
    assert isinstance(end_of(engine), InternalError)  # without a format it is no fault of the client


def test_vllm_that_has_stopped_can_be_asked_again_later(vllm: FakeVllm, engine: VllmEngine) -> None:
    vllm.error, vllm.errored = RuntimeError("the engine is dead"), True
    told = end_of(engine)
    assert isinstance(told, UpstreamUnavailable)
    assert told.retry_after
