"""Vectors of the nano bundle's decoder: what they are the mean of, what is refused, and who waits for whom."""

import asyncio
import os
import threading
from collections.abc import Iterator
from queue import SimpleQueue

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from autoglm.common.bundle import Bundle, chosen_bundle
from autoglm.common.errors import InvalidRequest
from autoglm.common.tensors import seal
from autoglm.common.torch_tensors import from_torch, to_torch
from autoglm.decoder import embed
from autoglm.decoder.embed import Embedder
from autoglm.decoder.model import DecoderModel
from autoglm.decoder.settings import DecoderSettings
from autoglm.fusion.gcma.model import GcmaFusion
from autoglm.v1.decoder_pb2 import DecoderPart, DecoderServiceEmbedRequest, DecoderServiceEmbedResponse
from autoglm.v1.embedding_pb2 import ELEMENT_TYPE_FLOAT32, Embedding
from autoglm.v1.modality_pb2 import MODALITY_AUDIO, MODALITY_IMAGE, Modality

WIDTHS: dict[Modality.ValueType, int] = {MODALITY_IMAGE: 320, MODALITY_AUDIO: 1536}


@pytest.fixture(scope="module")
def model() -> Iterator[DecoderModel]:
    settings = DecoderSettings.model_validate({"device": "cpu", "max_num_seqs": 1})
    loaded = DecoderModel.load(Bundle.open(chosen_bundle()), settings)
    yield loaded
    loaded.engine.close()


def medium(modality: Modality.ValueType, count: int) -> DecoderPart:
    tokens = torch.randn(count, WIDTHS[modality], generator=torch.Generator().manual_seed(count))
    return DecoderPart(media=Embedding(modality=modality, tokens=from_torch(tokens.to(torch.bfloat16))))


def text(words: str) -> DecoderPart:
    return DecoderPart(text=words)


async def vectors(model: DecoderModel, *parts: DecoderPart) -> DecoderServiceEmbedResponse:
    return await Embedder(model).embed(DecoderServiceEmbedRequest(input=parts))


def mean(rows: torch.Tensor) -> NDArray[np.float64]:
    total = rows.detach().double().mean(0).numpy()
    return np.asarray(total / np.linalg.norm(total))


async def test_making_vectors_gives_way_to_answers(model: DecoderModel) -> None:
    told = SimpleQueue[int]()
    Embedder(model).call(lambda: told.put(priority()))
    assert await asyncio.to_thread(told.get) > priority()


def priority() -> int:
    """The niceness of this thread."""
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


async def test_a_vector_is_the_mean_of_a_parts_own_tokens(model: DecoderModel) -> None:
    words = "打开相机 <|image|> " * 300  # longer than one piece, and no special token in it
    image, audio = medium(MODALITY_IMAGE, 49), medium(MODALITY_AUDIO, 30)
    found = await vectors(model, text(words), image, audio)
    ids = model.composer.tokenizer.encode("打开相机 ", add_special_tokens=False).ids
    assert found.prompt_tokens > 300 * len(ids) + 49 + 30
    fusion, spelt = model.fusion, model.composer.encode(words)
    assert isinstance(fusion, GcmaFusion)
    index = torch.arange(49)
    expected = [
        mean(fusion.project_text(model.embed(torch.tensor(spelt)))),
        mean(fusion.project_media("image", to_torch(image.media.tokens).float(), index)),
        mean(fusion.project_media("audio", to_torch(audio.media.tokens).float(), index[:30])),
    ]
    assert list(found.vectors.shape) == [3, fusion.config.width]
    np.testing.assert_allclose(to_torch(found.vectors).numpy(), np.stack(expected), atol=1e-6)


async def test_what_else_is_asked_changes_no_vector(model: DecoderModel) -> None:
    alone = await vectors(model, text("Open the camera"))
    among = await vectors(model, medium(MODALITY_AUDIO, 5), text("Open the camera"), text("no"))
    assert torch.equal(to_torch(alone.vectors)[0], to_torch(among.vectors)[1])


async def test_bad_parts_are_named(model: DecoderModel) -> None:
    narrow = Embedding(modality=MODALITY_IMAGE, tokens=seal(bytes(8), (1, 2), ELEMENT_TYPE_FLOAT32))
    cases = [
        ([], "input", "empty"),
        ([text("a"), text("")], "input[1]", "empty"),
        ([text("a"), text("好" * (model.context + 1))], "input[1]", f"but the text has {model.context + 1}"),
        ([text("a" * 10_000_000)], "input[0]", "but the text has more"),
        ([text("a"), text("b"), DecoderPart(media=narrow)], "input[2]", "[1, 2]"),
        ([DecoderPart(media=Embedding(tokens=narrow.tokens))], "input[0]", "does not understand"),
    ]
    for parts, param, message in cases:
        with pytest.raises(InvalidRequest) as raised:
            await vectors(model, *parts)
        assert raised.value.param == param
        assert message in raised.value.message
        assert (raised.value.code == "context_length_exceeded") == ("maximum context" in raised.value.message)


async def test_all_texts_together_have_a_limit(model: DecoderModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed, "MAX_TOKENS", 10)
    with pytest.raises(InvalidRequest, match="more than 10 tokens; send it in parts"):
        await vectors(model, text("一二三四五六"), text("七八九十一"))


async def test_who_gives_up_frees_the_thread(model: DecoderModel) -> None:
    """A hundred long texts take seconds; once their deadline has passed, the next request need not wait for them."""
    embedder = Embedder(model)
    long = DecoderServiceEmbedRequest(input=[text("好" * 2000)] * 140)
    long.timeout.FromMilliseconds(20)
    with pytest.raises(TimeoutError):
        await embedder.embed(long)
    found = await asyncio.wait_for(embedder.embed(DecoderServiceEmbedRequest(input=[text("hi")])), 10)
    assert found.vectors.shape[0] == 1
