"""POST /v1/embeddings by openai-python and LangChain as published, on the real mesh."""

import base64
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
from langchain_openai import OpenAIEmbeddings
from numpy.typing import NDArray

from autoglm.training.data.screens import draw_screen
from autoglm.training.data.speech import Espeak

from ..asking import MODEL
from ..cases import png_part, spoken

TEXTS = ["打开相机", "Open the camera app", "What colour is the Music icon?"]
Vectors = NDArray[np.float64]


@pytest.fixture
def client(base_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=base_url, api_key="EMPTY", max_retries=0) as client:
        yield client


def of_media(client: openai.OpenAI, part: dict[str, Any]) -> Vectors:
    """Return the vector of an image or a recording, as vLLM's documents say to ask for one."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": [part]}], "encoding_format": "float"}
    answer = client.post("/embeddings", cast_to=openai.types.CreateEmbeddingResponse, body=body)
    return np.array(answer.data[0].embedding)


def test_texts(client: openai.OpenAI) -> None:
    """openai-python asks for base64 by itself, and unpacks it."""
    packed = client.embeddings.create(model=MODEL, input=TEXTS, dimensions=512)
    plain = client.embeddings.create(model=MODEL, input=TEXTS, encoding_format="float")
    vectors = np.array([row.embedding for row in packed.data])
    np.testing.assert_array_equal(vectors, np.array([row.embedding for row in plain.data]))
    assert vectors.shape == (3, 512)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert packed.usage.total_tokens == packed.usage.prompt_tokens > 3
    single = client.embeddings.create(model=MODEL, input=TEXTS[1])
    np.testing.assert_array_equal(vectors[1], np.array(single.data[0].embedding))


def test_images_and_recordings(client: openai.OpenAI) -> None:
    rng = np.random.default_rng(5)
    Espeak.fresh()
    screens = [of_media(client, png_part(draw_screen("heldout", rng, "app"))) for _ in range(2)]
    said = [of_media(client, spoken(text, "zh", rng)) for text in ("打开相机", "打开相机", "返回")]
    for vector in screens + said:
        assert vector.shape == (512,)
        assert abs(np.linalg.norm(vector) - 1) < 1e-5
    assert said[0] @ said[1] > said[0] @ said[2]  # the same words by another voice, and other words


def test_langchain(base_url: str) -> None:
    options: Any = {"base_url": base_url, "api_key": "EMPTY", "max_retries": 0, "check_embedding_ctx_length": False}
    embeddings = OpenAIEmbeddings(model=MODEL, **options)
    documents, query = np.array(embeddings.embed_documents(TEXTS)), np.array(embeddings.embed_query(TEXTS[2]))
    assert int((documents @ query).argmax()) == 2


def test_what_is_wrong_is_named(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.embeddings.create(model=MODEL, input=["fits", "好" * 20_000])
    assert raised.value.param == "input[1]"
    assert "maximum context length" in raised.value.message
    with pytest.raises(openai.BadRequestError) as raised:
        client.embeddings.create(model=MODEL, input=[[9906, 1917]])
    assert "so send strings" in raised.value.message
    broken = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(b"no").decode()}}
    with pytest.raises(openai.APIStatusError) as failed:
        of_media(client, broken)
    assert failed.value.status_code == 415
