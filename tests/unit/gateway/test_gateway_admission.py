"""Nothing makes the services work without a slot that admission gave and that is still held."""

from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from autoglm.common.errors import RateLimited
from autoglm.gateway.admission.admission import Admission, AdmittedSlot, NotAdmitted
from autoglm.gateway.admission.byte_budget import ByteBudget
from autoglm.gateway.admission.keys import Keys
from autoglm.gateway.admission.quota import Quota
from autoglm.gateway.assistant import Assistant, ResolvedModel
from autoglm.gateway.context import RequestContext
from autoglm.gateway.conversation import Conversation, EmbeddingInputs, FieldPaths, MediaPart
from autoglm.gateway.file_watcher import FileWatcher
from autoglm.gateway.metrics import GatewayMetrics
from autoglm.gateway.settings import Settings
from autoglm.v1.generation_pb2 import SamplingParams
from autoglm.v1.modality_pb2 import MODALITY_AUDIO

SETTINGS = Settings(max_concurrent_requests=1, max_body_bytes=100, max_bytes_in_progress=100)
BUDGET = ByteBudget(SETTINGS, GatewayMetrics())
MODEL = ResolvedModel("bundle", "")
ASSISTANT = Assistant(*(cast(Any, None) for _ in range(6)))  # whatever would ask a service fails otherwise
WORK: dict[str, Callable[[AdmittedSlot], Awaitable[Any]]] = {
    "chat": lambda slot: anext(
        ASSISTANT.chat(slot, MODEL, Conversation([], SamplingParams(), FieldPaths(messages="messages")), stream=False)
    ),
    "embed": lambda slot: ASSISTANT.embed(slot, MODEL, EmbeddingInputs([], "input")),
    "transcribe": lambda slot: ASSISTANT.transcribe(slot, MediaPart(MODALITY_AUDIO, b"", "file")),
}


@pytest.fixture
def admission() -> Admission:
    metrics = GatewayMetrics()
    keys = Keys(SETTINGS, FileWatcher(metrics))
    return Admission(SETTINGS, metrics, keys, Quota(None, metrics), BUDGET)


@pytest.mark.parametrize("work", WORK)
async def test_the_slot_of_a_finished_request_is_refused(admission: Admission, work: str) -> None:
    async with admission.slot(RequestContext("r1")) as slot:
        assert slot.context.request_id == "r1"
    with pytest.raises(NotAdmitted, match="r1"):
        await WORK[work](slot)


@pytest.mark.parametrize("work", WORK)
async def test_a_slot_that_admission_did_not_give_is_refused(work: str) -> None:
    with pytest.raises(NotAdmitted):
        await WORK[work](AdmittedSlot(RequestContext("r1"), BUDGET))


async def test_a_refused_request_gets_no_slot(admission: Admission) -> None:
    async with admission.slot(RequestContext("r1")):
        with pytest.raises(RateLimited, match="at capacity"):
            await admission.slot(RequestContext("r2")).__aenter__()
    async with admission.slot(RequestContext("r3")) as slot:
        assert slot.context.request_id == "r3"


async def test_bytes_are_given_back_with_the_slot(admission: Admission) -> None:
    async with admission.slot(RequestContext("r1")) as slot:
        slot.reserve(60)
        slot.reserve(40)
        with pytest.raises(RateLimited, match="memory limit"):
            slot.reserve(1)
    with pytest.raises(NotAdmitted):
        slot.reserve(1)
    async with admission.slot(RequestContext("r2")) as slot:
        slot.reserve(100)
