"""What Serve's fallback proxy does with calls to an application without replicas."""

from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from autoglm.common import ingress
from autoglm.common.modalities import ApplicationName
from autoglm.common.services import ENCODER_SERVICES, SERVICES
from autoglm.v1.decoder_pb2 import DecoderServiceGenerateRequest
from autoglm.v1.embedding_pb2 import EncoderInfo

TOKEN = (("authorization", "Bearer secret"),)


class Aborted(Exception):
    """The call has ended."""


class Context(SimpleNamespace):
    """A call, with the metadata that its caller sent."""

    code = None

    def invocation_metadata(self) -> Any:
        return self.metadata

    def set_code(self, code: grpc.StatusCode) -> None:
        self.code = code

    def set_details(self, details: str) -> None:
        self.details = details

    def set_trailing_metadata(self, metadata: Any) -> None:
        self.trailing = metadata

    async def abort(self, code: grpc.StatusCode, details: str, trailing: Any) -> None:
        self.code, self.details, self.trailing = code, details, trailing
        raise Aborted


@pytest.fixture
def context(monkeypatch: pytest.MonkeyPatch) -> Context:
    monkeypatch.setenv("AUTOGLM_SERVE_TOKEN", "secret")
    return Context(metadata=TOKEN)


@pytest.mark.parametrize("name", SERVICES)
async def test_one_that_is_down_refuses(name: ApplicationName, context: Context) -> None:
    with pytest.raises(Aborted):
        await ingress._absent(name, SERVICES[name].describe(), context, False)
    assert context.code is grpc.StatusCode.UNAVAILABLE
    assert "starting or restarting" in context.details
    assert [key for key, _ in context.trailing] == ["grpc-status-details-bin"]


@pytest.mark.parametrize("name", ENCODER_SERVICES)
async def test_an_encoder_that_is_scaled_to_zero_is_described(name: ApplicationName, context: Context) -> None:
    service = ENCODER_SERVICES[name]
    response = await ingress._absent(name, service.describe(), context, True)
    assert response == service.described(encoder=EncoderInfo(idle=True)).SerializeToString()


@pytest.mark.parametrize("name", ENCODER_SERVICES)
async def test_any_other_call_is_held_and_starts_it(name: ApplicationName, context: Context) -> None:
    service = ENCODER_SERVICES[name]
    for request in (service.encode(), service.describe(start=True)):
        assert await ingress._absent(name, request, context, True) is None
    assert context.code is None


async def test_nobody_without_the_token_starts_anything(context: Context) -> None:
    context.metadata = ()
    for request in (ENCODER_SERVICES["speech"].encode(), ENCODER_SERVICES["speech"].describe()):
        assert await ingress._absent("speech", request, context, True) == b""
        assert context.code is grpc.StatusCode.UNAUTHENTICATED


async def test_a_decoder_is_never_idle(context: Context) -> None:
    """Without it no gateway is ready, so that nothing would ask for it."""
    with pytest.raises(Aborted):
        await ingress._absent("decoder", DecoderServiceGenerateRequest(), context, True)
    assert context.code is grpc.StatusCode.UNAVAILABLE
