"""What the decoder of the nano bundle refuses before it generates, with the codes that clients act on."""

from collections.abc import Iterator

import pytest

from autoglm.common.bundle import Bundle, chosen_bundle
from autoglm.common.deadlines import Deadline
from autoglm.common.errors import MeshError
from autoglm.decoder.model import DecoderModel
from autoglm.decoder.request_reader import read
from autoglm.decoder.settings import DecoderSettings
from autoglm.v1.decoder_pb2 import DecoderMessage, DecoderPart, DecoderServiceGenerateRequest
from autoglm.v1.generation_pb2 import ROLE_ASSISTANT, ROLE_SYSTEM, ROLE_USER, Role


@pytest.fixture(scope="module")
def model() -> Iterator[DecoderModel]:
    settings = DecoderSettings.model_validate({"device": "cpu", "max_num_seqs": 1})
    loaded = DecoderModel.load(Bundle.open(chosen_bundle()), settings)
    yield loaded
    loaded.engine.close()


def said(role: Role.ValueType, text: str) -> DecoderMessage:
    return DecoderMessage(role=role, parts=[DecoderPart(text=text)])


def refused(model: DecoderModel, request: DecoderServiceGenerateRequest) -> tuple[str, str, str | None]:
    with pytest.raises(MeshError) as caught:
        read(request, model, Deadline())
    return caught.value.type, caught.value.code, caught.value.param


def test_a_full_context_has_its_code_wherever_the_words_are(model: DecoderModel) -> None:
    words = "打开相机" * model.context
    turns = [said(role, "好" * (model.context // 8)) for role in (ROLE_USER, ROLE_ASSISTANT) * 8]
    for messages in (
        [said(ROLE_USER, words)],
        [said(ROLE_SYSTEM, words), said(ROLE_USER, "hi")],
        [*turns, said(ROLE_USER, "hi")],
    ):
        request = DecoderServiceGenerateRequest(messages=messages)
        assert refused(model, request) == ("invalid_request_error", "context_length_exceeded", "messages")


def test_an_adapter_that_is_not_there_is_an_unknown_model(model: DecoderModel) -> None:
    request = DecoderServiceGenerateRequest(messages=[said(ROLE_USER, "hi")], adapter="none")
    assert refused(model, request) == ("not_found", "model_not_found", "model")


def test_what_no_program_acts_on_has_its_type_as_code(model: DecoderModel) -> None:
    assert refused(model, DecoderServiceGenerateRequest()) == (
        "invalid_request_error",
        "invalid_request_error",
        "messages",
    )
