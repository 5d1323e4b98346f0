"""Where bodies are read: small ones at once, larger ones in a thread, large ones in a process that may die alone.

Most of these bodies are Python, and `eval` is what reads them: that way a body can say what its reader does.
"""

import asyncio
import base64
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial
from typing import Any

import orjson
import psutil
import pytest
import pytest_asyncio

from autoglm.common.errors import InvalidRequest, RequestTooLarge
from autoglm.common.priority import NICENESS
from autoglm.gateway import readers
from autoglm.gateway.openai import app
from autoglm.gateway.openai.chat.request import ChatCompletionRequest
from autoglm.gateway.openai.route import Incoming
from autoglm.gateway.openai.types import read_json
from autoglm.gateway.readers import IN_THREAD_BYTES, IN_THREAD_VALUES, ReaderPool
from autoglm.gateway.tasks import OFF_LOOP_BYTES

from ...waiting import eventually, eventually_async, soon
from .conftest import BUNDLE, Client, Serve
from .samples import image_part, png
from .test_gateway_parsing import error_of
from .test_gateway_routes import ROW as ECHO
from .test_gateway_routes import EchoRequest

PID, THREAD = b"__import__('os').getpid()", b"__import__('threading').get_ident()"
ENDLESS = b"sum(iter(int, 1))"  # never returns to the interpreter, so that no handler of a signal would run


def large(source: bytes) -> bytearray:
    """Return Python that is too large for a thread."""
    return bytearray(source.ljust(IN_THREAD_BYTES + 1))


@pytest_asyncio.fixture(loop_scope="session")
async def own_pool() -> AsyncIterator[ReaderPool]:
    """A pool of this test alone, which has not started its process."""
    pool = ReaderPool()
    yield pool
    pool.close()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def pool() -> AsyncIterator[ReaderPool]:
    """A pool whose process goes on."""
    pool = ReaderPool()
    yield pool
    pool.close()


def children(pool: ReaderPool) -> list[psutil.Process]:
    assert pool.pid is not None
    return psutil.Process(pool.pid).children()


async def one_child(pool: ReaderPool) -> psutil.Process:
    async def found() -> bool:
        return pool.pid is not None and len(children(pool)) == 1

    await eventually_async(found, "one child reads")
    return children(pool)[0]


async def test_the_size_decides_where_a_body_is_read(own_pool: ReaderPool) -> None:
    main, here = os.getpid(), int(eval(THREAD))
    assert await own_pool.read(THREAD, eval) == here
    assert await own_pool.read(THREAD.ljust(OFF_LOOP_BYTES + 1), eval) != here
    assert await own_pool.read(PID.ljust(IN_THREAD_BYTES), eval) == main
    assert own_pool.pid is None
    assert await own_pool.read(large(PID), eval) not in (main, own_pool.pid)


async def test_so_does_the_number_of_values(pool: ReaderPool) -> None:
    listed = PID + b" if [" + b"0, " * (IN_THREAD_VALUES - 1) + b"0"
    assert await pool.read(listed + b"] else 0", eval) == os.getpid()
    assert await pool.read(listed + b", 0] else 0", eval) != os.getpid()


async def test_a_form_is_no_list_of_values(pool: ReaderPool) -> None:
    listed = PID + b" if [" + b"0, " * (2 * IN_THREAD_VALUES) + b"0] else 0"
    assert await pool.read(listed, eval, is_json=False) == os.getpid()


async def test_a_body_is_read_with_low_priority_and_limits(pool: ReaderPool) -> None:
    assert await pool.read(large(b"__import__('os').nice(0)"), eval) == os.nice(0) + NICENESS
    limit = await pool.read(large(b"__import__('resource').getrlimit(2)[0]"), eval)
    assert 0 < limit < 2**30


@pytest.mark.parametrize(
    "value",
    [
        b"b'a' * 1_000_000",
        b"'a' * 1_000_000",
        b"'\xe4\xbd\xa0\xf0\x9f\x98\x80' * 100_000",
        b"['\\ud800' * 100_000, b'', 1]",
    ],
)
async def test_results_come_whole(value: bytes, pool: ReaderPool) -> None:
    assert await pool.read(large(value), eval) == eval(value)


async def test_errors_come_with_all_they_say(pool: ReaderPool) -> None:
    body = orjson.dumps({"messages": [{"role": "user", "content": 5}], "model": "a" * IN_THREAD_BYTES})
    with pytest.raises(InvalidRequest) as here:
        read_json(ChatCompletionRequest, id, body)
    with pytest.raises(InvalidRequest) as there:
        await pool.read(body, partial(read_json, ChatCompletionRequest, id))
    assert str(here.value) == str(there.value)
    assert here.value.param is not None
    assert (here.value.param, here.value.code) == (there.value.param, there.value.code)


async def test_readers_know_no_secrets(own_pool: ReaderPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOGLM_SERVE_TOKEN", "secret")
    told = await own_pool.read(large(b"dict(__import__('os').environ)"), eval)
    assert "PATH" in told
    assert "AUTOGLM_SERVE_TOKEN" not in told


async def test_a_fault_of_our_own_is_one_of_ours(pool: ReaderPool) -> None:
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        await pool.read(large(b"1 / 0"), eval)


@pytest.mark.parametrize(
    "source", [b"__import__('os').abort()", b"__import__('os').kill(" + PID + b", 9)", b"bytearray(10**10)"]
)
async def test_a_reader_dies_alone(source: bytes, pool: ReaderPool) -> None:
    other = asyncio.create_task(pool.read(large(b"__import__('time').sleep(0.1) or 5"), eval))
    with pytest.raises(RequestTooLarge):
        await pool.read(large(source), eval)
    assert await other == 5
    before = pool.pid
    assert await pool.read(large(b"6"), eval) == 6
    assert pool.pid == before


async def test_a_reader_has_only_so_much_cpu_time(pool: ReaderPool) -> None:
    with pytest.raises(RequestTooLarge):
        await pool.read(large(ENDLESS), eval)


async def test_a_reader_ends_when_nobody_waits_for_it(pool: ReaderPool) -> None:
    reading = asyncio.create_task(pool.read(large(ENDLESS), eval))
    child = await one_child(pool)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await asyncio.to_thread(eventually, lambda: not child.is_running(), "the child has ended")
    assert await pool.read(large(b"7"), eval) == 7


async def test_readers_are_bounded(pool: ReaderPool) -> None:
    reading = [asyncio.create_task(pool.read(large(ENDLESS), eval)) for _ in range(5)]

    async def full() -> bool:
        return pool.pid is not None and len(children(pool)) == readers.MAX_READERS

    await eventually_async(full, "as many read as may")
    last = asyncio.create_task(pool.read(large(b"8"), eval))
    assert len(children(pool)) <= readers.MAX_READERS
    for task in reading:
        task.cancel()
    assert await soon(last) == 8
    await asyncio.gather(*reading, return_exceptions=True)


async def test_the_process_is_started_again(own_pool: ReaderPool, caplog: pytest.LogCaptureFixture) -> None:
    own_pool.start()
    first = own_pool.pid
    assert first is not None
    for _ in range(2):
        assert own_pool.pid is not None
        os.kill(own_pool.pid, signal.SIGKILL)
        assert await own_pool.read(large(b"9"), eval) == 9
    assert own_pool.pid != first
    assert "starting it again" in caplog.text


OWNER = f"""
import asyncio
from autoglm.gateway.readers import ReaderPool
async def main():
    pool = ReaderPool()
    pool.start()
    print(pool.pid, flush=True)
    await pool.read({ENDLESS!r}.ljust({IN_THREAD_BYTES + 1}), eval)
asyncio.run(main())
"""


def test_nothing_outlives_a_killed_gateway() -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    forks = psutil.Process(int(owner.stdout.readline()))
    eventually(forks.children, "a child reads")
    (child,) = forks.children()
    owner.kill()
    owner.wait()
    owner.stdout.close()
    eventually(lambda: not forks.is_running() and not child.is_running(), "both have ended")


LONG = 1_000_000
CONTENTS: dict[str, Callable[[], Any]] = {
    "text": lambda: "你a" * LONG,
    "parts": lambda: [{"type": "text", "text": str(number)} for number in range(4000)],
}


@pytest.mark.parametrize("name", CONTENTS)
async def test_a_large_request_is_answered_like_others(name: str, shared: Client) -> None:
    content = CONTENTS[name]()
    assert (await shared.chat(content)).status_code == 200
    asked = shared.mesh.decoder.generate.requests[-1].messages[0].parts
    texts = [content] if isinstance(content, str) else [part["text"] for part in content]
    assert [part.text for part in asked] == texts


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/embeddings"])
async def test_every_route_reads_large_requests(path: str, shared: Client) -> None:
    field = {"/v1/responses": "input", "/v1/embeddings": "input"}.get(path, "messages")
    value = "a" * IN_THREAD_BYTES if field == "input" else [{"role": "user", "content": "a" * IN_THREAD_BYTES}]
    response = await shared.http.post(path, json={"model": BUNDLE, field: value})
    assert response.status_code == 200, response.text


async def test_media_of_a_large_request_reach_their_encoder(shared: Client) -> None:
    recording = b"RIFF\0\0\0\0WAVE" + random.Random(0).randbytes(IN_THREAD_BYTES)
    sound = {"type": "input_audio", "input_audio": {"data": base64.b64encode(recording).decode(), "format": "wav"}}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    picture = png(5, 3)
    response = await shared.chat([image_part(picture), sound, {"type": "text", "text": "?"}], tools=[tool])
    assert response.status_code == 200, response.text
    assert shared.mesh.vision.encode.requests[-1].image == picture
    assert shared.mesh.speech.encode.requests[-1].audio == recording


async def test_a_large_form_is_read(shared: Client) -> None:
    files = {"file": ("a.wav", b"RIFF\0\0\0\0WAVE" + bytes(IN_THREAD_BYTES))}
    form = {"model": BUNDLE, "response_format": "text"}
    response = await shared.http.post("/v1/audio/transcriptions", data=form, files=files)
    assert (response.status_code, response.text) == (200, "打开设置\n")
    form |= {"response_format": "srt", "stream": "true"}
    response = await shared.http.post("/v1/audio/transcriptions", data=form, files=files)
    assert (response.status_code, error_of(response)["param"]) == (400, "stream")


async def test_what_is_wrong_with_a_large_request_is_told(shared: Client) -> None:
    content = [{"type": "x", "text": "a" * IN_THREAD_BYTES}]
    body = {"model": BUNDLE, "messages": [{"role": "user", "content": content}]}
    response = await shared.http.post("/v1/chat/completions", json=body)
    assert (response.status_code, error_of(response)["param"]) == (400, "messages[0].content[0].type")
    broken = json.dumps(body)[:-1]
    response = await shared.http.post("/v1/chat/completions", content=broken)
    assert "not valid JSON" in error_of(response)["message"]


async def read(incoming: Incoming) -> EchoRequest:
    return await incoming.readers.read(incoming.body, eval)


ROW = replace(ECHO, path="/v1/evaluated", read=read)


@pytest_asyncio.fixture(loop_scope="session")
async def evaluating(serve: Serve, own_pool: ReaderPool, monkeypatch: pytest.MonkeyPatch) -> Client:
    """A gateway with a route that evaluates bodies, in `own_pool`."""
    monkeypatch.setattr(app, "ROUTES", (*app.ROUTES, ROW))
    monkeypatch.setattr("autoglm.gateway.app.ReaderPool", lambda: own_pool)
    return await serve()


async def test_a_client_that_leaves_takes_its_reader_along(evaluating: Client, own_pool: ReaderPool) -> None:
    asked = asyncio.create_task(evaluating.http.post(ROW.path, content=bytes(large(ENDLESS))))
    child = await one_child(own_pool)
    asked.cancel()
    await asyncio.to_thread(eventually, lambda: not child.is_running(), "the child has ended")


async def test_the_deadline_ends_a_reader(evaluating: Client, own_pool: ReaderPool) -> None:
    headers = {"x-request-timeout": "0.5"}
    response = await evaluating.http.post(ROW.path, content=bytes(large(ENDLESS)), headers=headers)
    assert (response.status_code, error_of(response)["code"]) == (504, "deadline_exceeded")
    await asyncio.to_thread(eventually, lambda: not children(own_pool), "the child has ended")


async def test_a_reader_that_dies_is_told_to_its_client_alone(evaluating: Client) -> None:
    response = await evaluating.http.post(ROW.path, content=bytes(large(b"__import__('os').abort()")))
    assert (response.status_code, error_of(response)["code"]) == (413, "request_too_large")
    assert (await evaluating.chat("a" * IN_THREAD_BYTES)).status_code == 200
