"""The numbers that a request may hold: OpenAI's ranges, in each way that JSON writes a number."""

import json
from typing import Any

import grpc
import pytest

from autoglm.v1.chat_pb2 import CompleteRequest
from autoglm.v1.chat_pb2_grpc import ChatServiceStub
from autoglm.v1.decoder_pb2 import DecoderServiceGenerateRequest
from autoglm.v1.generation_pb2 import SamplingParams

from .conftest import BUNDLE, Client, FakeMesh
from .test_gateway_answers import chat_request, field_of
from .test_gateway_parsing import error_of
from .test_gateway_responses import respond

HUGE = 2**63


async def asked(client: Client, path: str, **fields: Any) -> DecoderServiceGenerateRequest:
    """Return what reaches the decoder."""
    given = {"input": "hi"} if path == "responses" else {"messages": [{"role": "user", "content": "hi"}]}
    name = {"responses": "/v1/responses", "chat": "/v1/chat/completions"}[path]
    response = await client.http.post(name, json={"model": BUNDLE, **given, **fields})
    assert response.status_code == 200, response.text
    request: DecoderServiceGenerateRequest = client.mesh.decoder.generate.requests[-1]
    return request


@pytest.mark.parametrize("path", ["chat", "responses"])
@pytest.mark.parametrize(
    ("seed", "sent"),
    [(0, 0), (-1, 2**64 - 1), (-7, 2**64 - 7), (-HUGE, HUGE), (HUGE - 1, HUGE - 1), (5.0, 5), (-2e0, 2**64 - 2)],
)
async def test_a_seed_is_a_signed_64_bit_integer(shared: Client, path: str, seed: float, sent: int) -> None:
    assert (await asked(shared, path, seed=seed)).sampling.seed == sent


async def test_different_seeds_stay_different(shared: Client) -> None:
    seeds = [-HUGE, -HUGE + 1, -2, -1, 0, 1, HUGE - 1]
    assert len({(await asked(shared, "chat", seed=seed)).sampling.seed for seed in seeds}) == len(seeds)


@pytest.mark.parametrize(
    ("seed", "sent"), [(-1, [2**64 - 1, 0, 1]), (-2, [2**64 - 2, 2**64 - 1, 0]), (HUGE - 1, [HUGE - 1, HUGE, HUGE + 1])]
)
async def test_each_choice_has_a_seed_of_its_own(client: Client, mesh: FakeMesh, seed: int, sent: list[int]) -> None:
    assert (await client.chat("hi", n=3, seed=seed)).status_code == 200
    assert sorted(request.sampling.seed for request in mesh.decoder.generate.requests) == sorted(sent)


@pytest.mark.parametrize("path", ["chat", "responses"])
@pytest.mark.parametrize(
    ("name", "given", "sent"),
    [
        ("top_p", 0, 0),
        ("top_p", 1, 1),
        ("temperature", 2, 2),
        ("temperature", 0.0, 0),
        ("presence_penalty", -2, -2),
        ("frequency_penalty", 2, 2),
        ("top_k", -1, 0),
        ("top_k", 4.0, 4),
        ("max_thinking_tokens", 0, 0),
        ("min_p", 1, 1),
    ],
)
async def test_the_ends_of_each_range(shared: Client, path: str, name: str, given: float, sent: float) -> None:
    sampling = (await asked(shared, path, **{name: given})).sampling
    assert (sampling.HasField(name), getattr(sampling, name)) == (True, sent)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("path", "name"), [("chat", "max_tokens"), ("chat", "max_completion_tokens"), ("responses", "max_output_tokens")]
)
@pytest.mark.parametrize("number", ["16", "16.0", "1.6e1", "160E-1"])
async def test_a_whole_number_may_be_written_as_a_float(shared: Client, path: str, name: str, number: str) -> None:
    assert (await asked(shared, path, **{name: json.loads(number)})).sampling.max_tokens == 16


@pytest.mark.parametrize("path", ["chat", "responses"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", -2 * HUGE),
        ("seed", HUGE),
        ("seed", "1"),
        ("seed", 1.5),
        ("seed", True),
        ("top_p", -0.1),
        ("top_p", "0.5"),
        ("temperature", 2.0001),
        ("top_k", "4"),
        ("top_k", 1e300),
        ("presence_penalty", -2.1),
        ("min_p", "0"),
        ("stop", [1.0]),
    ],
)
async def test_what_is_beyond_a_range_is_named(shared: Client, path: str, name: str, value: Any) -> None:
    given = {"input": "hi"} if path == "responses" else {"messages": [{"role": "user", "content": "hi"}]}
    route = "/v1/responses" if path == "responses" else "/v1/chat/completions"
    response = await shared.http.post(route, content=json.dumps({"model": BUNDLE, **given, name: value}))
    assert (response.status_code, error_of(response)["param"].partition("[")[0]) == (400, name)


@pytest.mark.parametrize("path", ["chat", "responses"])
@pytest.mark.parametrize(
    ("stop", "sent"),
    [
        (None, []),
        ("", []),
        ([], []),
        ([""], []),
        ("a", ["a"]),
        (["a", "", "b"], ["a", "b"]),
        (list("abcd"), list("abcd")),
    ],
)
async def test_stops(shared: Client, path: str, stop: Any, sent: list[str]) -> None:
    assert list((await asked(shared, path, stop=stop)).sampling.stop) == sent


@pytest.mark.parametrize(
    ("bias", "sent"), [(None, {}), ({}, {}), ({"0": -100}, {0: -100}), ({"7": 100, "8": 0.5}, {7: 100, 8: 0.5})]
)
async def test_logit_bias(shared: Client, bias: Any, sent: dict[int, float]) -> None:
    assert dict((await asked(shared, "chat", logit_bias=bias)).sampling.logit_bias) == sent


@pytest.mark.parametrize("path", ["chat", "responses"])
@pytest.mark.parametrize("metadata", [{"k" * 64: "v" * 512}, {str(i): "" for i in range(16)}, {}, None])
async def test_metadata_may_be_as_long_as_openai_takes(shared: Client, path: str, metadata: Any) -> None:
    await asked(shared, path, metadata=metadata)


@pytest.mark.parametrize("metadata", [{"k" * 65: ""}, {"k": "v" * 513}, {str(i): "" for i in range(17)}, {"k": 1}])
async def test_longer_metadata_is_refused(shared: Client, metadata: Any) -> None:
    for response in (await shared.chat("hi", metadata=metadata), await respond(shared, "hi", metadata=metadata)):
        assert (response.status_code, error_of(response)["param"].partition(".")[0]) == (400, "metadata")


async def test_more_choices_than_allowed_say_why(shared: Client) -> None:
    error = error_of(await shared.chat("hi", n=9))
    assert error["param"] == "n"
    assert error["message"].startswith("n must be between 1 and 8, because all choices are generated at the same time")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ChatServiceStub(shared.channel).Complete(CompleteRequest(chat=chat_request(n=9)))
    assert field_of(caught.value) == "chat.n"
    assert "send several requests" in (caught.value.details() or "")


@pytest.mark.parametrize("seed", [0, HUGE, 2**64 - 1])
async def test_grpc_takes_every_seed(shared: Client, seed: int) -> None:
    chat = chat_request()
    chat.sampling.CopyFrom(SamplingParams(seed=seed, top_p=0))
    await ChatServiceStub(shared.channel).Complete(CompleteRequest(chat=chat))
    sent = shared.mesh.decoder.generate.requests[-1].sampling
    assert (sent.seed, sent.HasField("top_p")) == (seed, True)
