"""Speech is scaled to zero when nobody asks for it, and its next request starts it; the decoder gets a second replica
while it is busy."""

import base64
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
import yaml

from ..asking import MODEL, Asker
from ..cases import ScreenCase, screen_cases
from ..mesh import Mesh
from ..redeploy import asking, redeploy
from ..waiting import eventually

CHANGES = yaml.safe_load(Path(__file__).with_name("scaling.yaml").read_text())


@pytest.fixture(scope="module")
def scaled(mesh: Mesh) -> Iterator[Mesh]:
    """The shared mesh while its replicas follow the load; afterwards each service has one again."""
    redeploy(mesh, CHANGES)
    yield mesh
    redeploy(mesh, {})
    eventually(mesh.is_whole, "every service has a replica")


def speech_is(ask: Asker, status: str) -> None:
    def reported() -> bool:
        try:
            ready = ask.http.get("/health/ready")
        except httpx.TransportError:  # the gateway does not run yet
            return False
        return ready.status_code == 200 and bool(ready.json()["dependencies"]["speech"] == status)

    eventually(reported, f"speech is {status}")


@pytest.fixture
def case() -> ScreenCase:
    return screen_cases("back", "app", 1, seed=91)[0]


def test_a_transcription_starts_it(scaled: Mesh, ask: Asker, case: ScreenCase) -> None:
    speech_is(ask, "idle")
    (modalities,) = {tuple(card["modalities"]) for card in ask.http.get("/v1/models").json()["data"]}
    assert modalities == ("text", "image", "audio")
    audio = base64.b64decode(case.audio["input_audio"]["data"])
    response = ask.http.post("/v1/audio/transcriptions", files={"file": audio}, data={"model": MODEL})
    assert response.status_code == 200, response.text
    assert response.json()["text"]


def test_a_gateway_that_has_never_seen_it_starts_it(scaled: Mesh, ask: Asker, case: ScreenCase) -> None:
    speech_is(ask, "idle")
    scaled.gateway().kill()
    speech_is(ask, "idle")
    heard = ask.post(case.image, case.audio)
    assert heard.status_code == 200, heard.text
    assert heard.json()["usage"]["prompt_tokens_details"]["audio_tokens"] > 0


def test_a_busy_decoder_gets_a_second_replica_for_as_long_as_it_is_busy(scaled: Mesh, ask: Asker) -> None:
    eventually(lambda: len(scaled.replicas("decoder")) == 1, "the decoder has one replica")

    def question() -> str:
        response = ask.post("你好")
        return "OK" if response.status_code == 200 else response.text

    with ExitStack() as stack:
        answered = [stack.enter_context(asking(question)) for _ in range(4)]
        eventually(lambda: len(scaled.replicas("decoder")) == 2, "the decoder has two replicas")
        before = [len(each) for each in answered]
        eventually(lambda: all(len(each) > old for each, old in zip(answered, before, strict=True)), "all go on")
    eventually(lambda: len(scaled.replicas("decoder")) == 1, "the decoder has one replica again")
    assert question() == "OK"
    assert {answer for each in answered for answer in each} == {"OK"}
