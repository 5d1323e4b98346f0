"""An assembled bundle in the classes that serve it, against transformers' own on the published folders."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
import pytest
import soundfile
import torch
from transformers import AutoTokenizer, GlmForCausalLM, MobileViTForImageClassification, WhisperForConditionalGeneration

from autoglm.bundles.preset import Sources
from autoglm.common.bundle import Bundle
from autoglm.common.deadlines import Deadline
from autoglm.decoder.engine.engine import EmbeddedEngine
from autoglm.decoder.engine.request import Request, SamplingConfig
from autoglm.decoder.engine.runner import Runner
from autoglm.decoder.engine.sequence import Sequence
from autoglm.decoder.model import DecoderModel
from autoglm.decoder.request_reader import read
from autoglm.decoder.servicer import DecoderServicer
from autoglm.decoder.settings import DecoderSettings
from autoglm.fusion.prompt import Media, PromptMessage
from autoglm.speech.model import SpeechModel
from autoglm.speech.servicer import SpeechServicer
from autoglm.speech.settings import SpeechSettings
from autoglm.v1 import decoder_pb2, generation_pb2, speech_pb2
from autoglm.vision.models.mobilevit import MobileVit
from autoglm.vision.servicer import VisionServicer
from autoglm.vision.settings import VisionSettings

from .samples import AUDIO, IMAGE, NAME

TALK = [PromptMessage("system", ("你是手机助手。",)), PromptMessage("user", ("Open the camera, please.",))]


@pytest.fixture(scope="module")
def decoder(bundle: Bundle) -> Iterator[DecoderModel]:
    loaded = DecoderModel.load(bundle, DecoderSettings.model_validate({"device": "cpu", "max_num_seqs": 2}))
    yield loaded
    loaded.engine.close()


def runner_of(decoder: DecoderModel) -> Runner:
    assert isinstance(decoder.engine, EmbeddedEngine)
    return decoder.engine.core.runner


def test_what_serves_images_is_the_published_encoder(bundle: Bundle, sources: Sources) -> None:
    ours = MobileVit.from_pretrained(bundle.root / "vision")
    published = MobileViTForImageClassification.from_pretrained(sources.vision).mobilevit.eval()
    pixels = torch.rand(2, 3, 224, 224)
    expected = published(pixels).last_hidden_state.flatten(2).transpose(1, 2)
    assert expected.shape == (2, 49, IMAGE)
    torch.testing.assert_close(ours.features(pixels), expected.detach())
    assert ours.preprocessing.flip_channels  # the published weights read blue first


def test_what_serves_speech_is_the_published_encoder(bundle: Bundle, sources: Sources) -> None:
    ours = SpeechModel.from_pretrained(bundle.root / "speech")
    published = WhisperForConditionalGeneration.from_pretrained(sources.speech).model.encoder.eval()
    samples = np.random.default_rng(0).standard_normal(30 * 16_000).astype(np.float32)
    (heard,) = ours.encode([samples])
    expected = published(ours.mel(samples)[None]).last_hidden_state[0].reshape(375, AUDIO)
    torch.testing.assert_close(heard.tokens, expected.detach(), rtol=1e-4, atol=1e-4)
    assert (heard.transcript, ours.transcribes) == ("", False)


@pytest.mark.parametrize("int8", [False, True])
def test_vision_and_decoder_start_and_say_what_they_are(bundle: Bundle, int8: bool) -> None:
    """As their applications load them: vision, and a decoder that has answered a prompt with each medium."""
    at = {"bundle": str(bundle.root), "device": "cpu", "int8": int8}
    vision = VisionServicer.load(VisionSettings.model_validate(at | {"max_batch": 1})).describe().encoder
    assert (vision.width, vision.int8, vision.bundle) == (IMAGE, int8, NAME)
    assert (vision.device, vision.version) == ("cpu", version("autoglm-mesh"))
    servicer = DecoderServicer.load(DecoderSettings.model_validate(at | {"max_num_seqs": 2}))
    servicer.engine.close()
    decoder = servicer.describe()
    assert (len(decoder.modalities), decoder.int8) == (3, int8)
    assert (decoder.engine, decoder.device, decoder.version) == ("embedded", "cpu", version("autoglm-mesh"))
    assert decoder.revision == bundle.parts["decoder"].revision
    assert decoder.fusion_revision == bundle.parts["fusion"].revision


def test_a_decoder_on_a_gpu_has_no_8_bit_form(bundle: Bundle) -> None:
    with pytest.raises(ValueError, match="not on cuda:1: remove int8"):
        DecoderModel.load(bundle, DecoderSettings.model_validate({"device": "cuda:1", "int8": True}))


def test_vllm_is_asked_for_where_it_cannot_be_had(bundle: Bundle) -> None:
    with pytest.raises(ValueError, match="not installed here"):
        DecoderModel.load(bundle, DecoderSettings.model_validate({"engine": "vllm"}))
    with pytest.raises(ValueError, match="only the embedded engine"):
        DecoderModel.load(bundle, DecoderSettings.model_validate({"engine": "vllm", "int8": True}))


def test_text_alone_is_plain_transformers(decoder: DecoderModel, sources: Sources) -> None:
    plain = GlmForCausalLM.from_pretrained(sources.decoder).eval()
    rows = [{"role": message.role, "content": message.parts[0]} for message in TALK]
    ids = AutoTokenizer.from_pretrained(sources.decoder).apply_chat_template(
        rows, add_generation_prompt=True, return_dict=False
    )
    prompt = decoder.composer.compose(TALK)
    assert prompt.token_ids == ids
    sequence = Sequence(Request(prompt, SamplingConfig(), decoder.context))
    runner = runner_of(decoder)
    runner.prepare(sequence)
    ours = runner.prefill(sequence, 0, sequence.num_tokens)[0]
    said = torch.isfinite(ours)  # special tokens and padding are never said
    theirs = plain(torch.tensor([ids])).logits[0, -1].detach()
    assert said.sum() >= 256
    torch.testing.assert_close(ours[said], theirs[said], rtol=1e-5, atol=1e-5)


def test_text_beside_media_is_hardly_touched_and_media_are_as_loud_as_words(decoder: DecoderModel) -> None:
    torch.manual_seed(3)
    media = (Media("image", torch.randn(49, IMAGE)), Media("audio", 3 * torch.randn(20, AUDIO)))
    prompt = decoder.composer.compose([TALK[0], PromptMessage("user", (*media, "Open the camera, please."))])
    runner = runner_of(decoder)
    embed = runner.glm.embed
    plain, fused = embed(torch.tensor(prompt.token_ids)), runner.fusion.inputs(embed, prompt)
    words = torch.ones(len(prompt.token_ids), dtype=torch.bool)
    for run in prompt.runs:
        words[run.start : run.stop] = run.media is None
    change = (fused.embeddings - plain)[words].norm() / plain[words].norm()
    assert 0 < change < 2**-9  # half a step of bfloat16
    loudness = fused.embeddings[~words].square().mean().sqrt() / plain.square().mean().sqrt()
    assert 0.7 < loudness < 1.4
    assert all(0 < gate < 1e-3 for gate in fused.gates.values())


@dataclass
class Answered:
    """A context that keeps what was set on it."""

    details: str = ""
    trailing: tuple[tuple[str, str | bytes], ...] = ()

    def set_code(self, code: object) -> None:
        self.code = code

    def set_details(self, details: str) -> None:
        self.details = details

    def set_trailing_metadata(self, metadata: list[tuple[str, str | bytes]]) -> None:
        self.trailing = tuple(metadata)


class Unmeasured:
    """Metrics that nobody reads."""

    def batched(self, size: int) -> None: ...

    def encoded(self, preprocess: float, queue: float, compute: float) -> None: ...


async def test_a_template_without_a_place_for_tools_is_given_none(decoder: DecoderModel) -> None:
    tool = generation_pb2.Tool(function=generation_pb2.Function(name="now"))
    refused = Answered()
    request = decoder_pb2.DecoderServiceGenerateRequest(messages=[decoder_pb2.DecoderMessage()], tools=[tool])
    assert [message async for message in DecoderServicer(decoder).generate(request, refused)] == []
    assert f"the chat template of {NAME} does not support tools" in refused.details


def test_earlier_calls_are_words_to_a_template_without_tools(decoder: DecoderModel) -> None:
    call = generation_pb2.ToolCall(function=generation_pb2.FunctionCall(name="now", arguments='{"zone": "东京"}'))
    turns = [
        decoder_pb2.DecoderMessage(role=generation_pb2.ROLE_USER, parts=[decoder_pb2.DecoderPart(text="what time?")]),
        decoder_pb2.DecoderMessage(role=generation_pb2.ROLE_ASSISTANT, tool_calls=[call, call]),
        decoder_pb2.DecoderMessage(role=generation_pb2.ROLE_TOOL, parts=[decoder_pb2.DecoderPart(text="noon")]),
    ]
    request = read(decoder_pb2.DecoderServiceGenerateRequest(messages=turns), decoder, Deadline())
    prompt = decoder.composer.tokenizer.decode(request.prompt.token_ids, skip_special_tokens=False)
    assert prompt.count('now({"zone": "东京"})') == 2
    assert prompt.index("what time?") < prompt.index("now(") < prompt.index("noon")


async def test_without_a_head_recordings_are_encoded_and_transcripts_refused(bundle: Bundle) -> None:
    settings = {"bundle": str(bundle.root), "device": "cpu", "max_batch": 1}
    servicer = SpeechServicer.load(SpeechSettings.model_validate(settings))
    assert not servicer.describe().transcribes
    file = io.BytesIO()
    soundfile.write(file, np.zeros(16_000, np.float32), 16_000, format="WAV")
    heard, refused = Answered(), Answered()
    request = speech_pb2.SpeechServiceEncodeRequest(audio=file.getvalue())
    encoded = await servicer.encode(request, heard, Unmeasured())
    assert (list(encoded.embedding.tokens.shape), encoded.embedding.transcript, heard.details) == ([13, AUDIO], "", "")
    asked = speech_pb2.SpeechServiceTranscribeRequest(audio=file.getvalue())
    said = await servicer.transcribe(asked, refused, Unmeasured())
    assert said.text == ""
    assert f"bundle {NAME} writes no transcripts" in refused.details
    (status,) = (value for _, value in refused.trailing)
    assert isinstance(status, bytes)
    assert b"INVALID_REQUEST_ERROR" in status
