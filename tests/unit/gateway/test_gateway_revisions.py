"""While an encoder is replaced by one with other weights, no answer is made from what both of them say."""

import pytest

from .conftest import Client, FakeMesh, Serve
from .samples import audio_part, image_part, png, wav
from .test_gateway_cache import ask
from .test_gateway_embedding_service import embed, image

PICTURES = [image_part(png(colour=colour)) for colour in ("red", "green", "blue")]


def revisions(mesh: FakeMesh) -> list[str]:
    """Return the revision of each medium of the last prompt."""
    (message,) = mesh.decoder.generate.requests[-1].messages
    return [part.media.encoder_revision for part in message.parts]


@pytest.mark.parametrize(
    ("turns", "last", "used"),
    [
        (["r1", "r2", "r1"], "r1", "r1"),  # the old one still answers
        (["r1", "r2", "r1"], "r2", "r2"),  # it is gone
        (["r2", "r1", "r2", "r1", "r2", "r1"], "r2", "r2"),
        (["r2", "r2", "r2"], "r2", "r2"),  # before the gateway knows
    ],
)
async def test_the_pictures_of_a_request_have_one_revision(
    client: Client, mesh: FakeMesh, turns: list[str], last: str, used: str
) -> None:
    mesh.vision.revisions, mesh.vision.revision = turns, last
    response = await client.chat([*PICTURES, audio_part(wav())])
    assert response.status_code == 200
    assert revisions(mesh) == [used] * 3 + ["r1"]


async def test_what_the_cache_has_of_the_old_one_is_not_used_beside_the_new(client: Client, mesh: FakeMesh) -> None:
    assert (await client.chat(PICTURES[:2])).status_code == 200
    mesh.vision.revision = "r2"
    assert (await client.chat(PICTURES)).status_code == 200
    assert revisions(mesh) == ["r2"] * 3


async def test_vectors_of_one_answer_come_from_one_revision(client: Client, mesh: FakeMesh) -> None:
    mesh.vision.revisions = ["r1", "r2"]
    await embed(client, *(image(data=png(colour=colour)) for colour in ("red", "green")))
    (request,) = mesh.decoder.embed.requests
    assert {part.media.encoder_revision for part in request.input} == {"r1"}


async def test_no_embedding_is_found_under_another_revision(serve: Serve, mesh: FakeMesh) -> None:
    client = await serve(poll_interval=1000)
    await ask(client, PICTURES[1])  # it knows r1 now
    for revision in ("r2", "r1"):
        mesh.vision.revision = revision
        assert await ask(client, PICTURES[0]) == ["miss"]
        assert revisions(mesh) == [revision]


async def test_replicas_that_go_on_to_differ_are_a_fault(client: Client, mesh: FakeMesh) -> None:
    mesh.vision.revisions = [f"r{number}" for number in range(100)]
    response = await client.chat(PICTURES[:2])
    assert (response.status_code, response.headers["retry-after"]) == (503, "2")
    assert response.json()["error"]["message"] == "the vision service is being replaced; try again soon"
    assert not mesh.decoder.generate.requests
