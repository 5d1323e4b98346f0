"""The spans of an answer are made from the engine's own times, and its lines in the log say whose they are."""

import logging
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any

import pytest

from autoglm.common.bundle import Bundle, chosen_bundle
from autoglm.common.logs import RequestFilter
from autoglm.common.server import served
from autoglm.decoder.model import DecoderModel
from autoglm.decoder.servicer import DecoderServicer
from autoglm.decoder.settings import DecoderSettings
from autoglm.v1.decoder_pb2 import DecoderMessage, DecoderPart, DecoderServiceGenerateRequest
from autoglm.v1.generation_pb2 import ROLE_USER

from ...otlp import ReceivedSpan, Receiver, traced
from ...waiting import eventually

TRACE = "0af7651916cd43dd8448eb211c80319c"
METHOD = "autoglm.v1.DecoderService/Generate"


@pytest.fixture(scope="module")
def service() -> Iterator[DecoderServicer]:
    settings = DecoderSettings.model_validate({"device": "cpu", "max_num_seqs": 2})
    model = DecoderModel.load(Bundle.open(chosen_bundle()), settings)
    yield DecoderServicer(model)
    model.engine.close()


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    with traced("decoder", monkeypatch) as receiver:
        yield receiver


class CallContext:
    """The context of a call from a gateway that traces."""

    code: Any = None

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return [("x-request-id", "r1"), ("traceparent", f"00-{TRACE}-b7ad6b7169203331-01")]

    def set_code(self, code: Any) -> None:
        self.code = code

    def set_details(self, details: str) -> None: ...

    def set_trailing_metadata(self, metadata: Any) -> None: ...


async def answer(service: DecoderServicer, context: CallContext, most: int, max_tokens: int = 6) -> int:
    """Return how many of at most `most` messages of an answer have come."""
    message = DecoderMessage(role=ROLE_USER, parts=[DecoderPart(text="你是谁?")])
    request, count = DecoderServiceGenerateRequest(messages=[message]), 0
    request.sampling.max_tokens = max_tokens
    with served(context, METHOD):
        async with aclosing(service.generate(request, context)) as messages:  # type: ignore[type-var]
            async for _ in messages:
                count += 1
                if count == most:
                    break
    return count


def spans(receiver: Receiver) -> dict[str, ReceivedSpan]:
    """Return the spans by name, once the call's own has come."""
    eventually(lambda: any(each.name == METHOD for each in receiver.spans), "the span of the call arrives")
    return {each.name: each for each in receiver.of(TRACE)}


async def test_an_answer_has_a_span_for_each_stage_in_order(service: DecoderServicer, receiver: Receiver) -> None:
    assert await answer(service, CallContext(), most=100)
    found = spans(receiver)
    assert list(found) == [METHOD, "read", "queue", "prefill", "decode"]
    for before, after in (("queue", "prefill"), ("prefill", "decode")):
        gap = found[after].span.start_time_unix_nano - found[before].span.end_time_unix_nano
        assert abs(gap) < 1e6
    assert all(found[METHOD].is_around(each) for each in found.values())
    assert found["decode"].attributes == {"autoglm.completion_tokens": 6}
    assert found["prefill"].attributes["autoglm.prompt_tokens"] > 0
    assert found[METHOD].events == ["first token"]
    assert found[METHOD].attributes["rpc.response.status_code"] == "OK"


async def test_a_client_that_leaves_ends_the_spans(service: DecoderServicer, receiver: Receiver) -> None:
    assert await answer(service, CallContext(), most=1, max_tokens=500) == 1
    found = spans(receiver)
    assert "decode" in found
    assert {each.status for each in found.values()} == {"unset"}


async def test_an_engine_that_fails_says_for_whom(
    service: DecoderServicer, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(service.engine.core.runner, "prefill", fail)  # type: ignore[attr-defined]
    caplog.handler.addFilter(RequestFilter())
    with caplog.at_level(logging.ERROR, "autoglm"):
        assert await answer(service, CallContext(), most=100) == 0
    (record,) = [each for each in caplog.records if "a sequence failed" in each.getMessage()]
    assert (vars(record)["request_id"], vars(record)["trace_id"]) == ("r1", TRACE)
    found = spans(receiver)
    assert found[METHOD].status == "error: internal"
    assert found[METHOD].attributes["rpc.response.status_code"] == "INTERNAL"
