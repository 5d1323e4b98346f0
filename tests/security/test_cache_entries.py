"""What somebody writes into the Redis of a mesh is not believed, and clients do not notice it."""

import base64
import hashlib
import hmac
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import pytest
import redis

from autoglm.v1.embedding_pb2 import Embedding

from ..asking import Asker, caches
from ..cases import ScreenCase, screen_cases
from ..gateway import running_gateway
from ..mesh import Mesh
from ..waiting import NET_SECONDS, eventually

MAC_BYTES = hashlib.sha256().digest_size
Change = Callable[[bytes], bytes]
_seeds = itertools.count(7000)


@contextmanager
def forgetful_gateway(mesh: Mesh, secret: str) -> Iterator[Asker]:
    """A gateway that remembers nothing itself, so that it reads every embedding from Redis."""
    settings = {"redis_url": mesh.redis_url, "cache_bytes": "0", "cache_secret": secret, "redis_timeout": "10"}
    with (
        running_gateway(mesh, **settings) as url,
        httpx.Client(base_url=url, timeout=NET_SECONDS, trust_env=False) as http,
    ):
        yield Asker(http)


@pytest.fixture(scope="module")
def forgetful(mesh: Mesh) -> Iterator[Asker]:
    """Such a gateway, with a secret."""
    with forgetful_gateway(mesh, "known to the operator alone") as ask:
        yield ask


@pytest.fixture
def store(mesh: Mesh) -> Iterator[redis.Redis]:
    """The mesh's Redis, as anyone sees it who can connect to it."""
    with redis.Redis.from_url(mesh.redis_url) as client:
        yield client


def changed(change: Callable[[Embedding], object]) -> Change:
    """Change what an entry says, and leave its checksum."""

    def rewrite(entry: bytes) -> bytes:
        embedding = Embedding.FromString(entry[MAC_BYTES:])
        change(embedding)
        return entry[:MAC_BYTES] + embedding.SerializeToString()

    return rewrite


def flipped(place: float) -> Change:
    """Turn over one bit, at this share of the entry."""

    def flip(entry: bytes) -> bytes:
        data = bytearray(entry)
        data[int(place * len(data))] ^= 1
        return bytes(data)

    return flip


def reshape(*shape: int) -> Change:
    """Claim another shape."""
    return changed(lambda embedding: embedding.tokens.shape.__setitem__(slice(None), shape))


CHANGES: dict[str, Change] = {
    "a map of tokens": reshape(7, 7, 640),
    "one long token": reshape(1, 49 * 640),
    "no tokens": reshape(0, 640),
    "a transcript": changed(lambda embedding: setattr(embedding, "transcript", "打开相机")),
    "a long transcript": changed(lambda embedding: setattr(embedding, "transcript", "word " * 100_000)),
    "a grid": changed(lambda embedding: embedding.grid.extend([49, 1])),
    "another file": changed(lambda embedding: setattr(embedding, "media_sha256", bytes(32))),
    "another encoder": changed(lambda embedding: setattr(embedding, "encoder_revision", "none")),
    "the first bit": flipped(0),
    "a bit of the shape's": flipped(0.002),
    "a bit in the middle": flipped(0.5),
    "the last bit": flipped(0.99999),
    "half of it": lambda entry: entry[: len(entry) // 2],
    "nothing": lambda entry: b"",
    "text": lambda entry: b"not an embedding",
    "8 MB": lambda entry: entry * (8 * 2**20 // len(entry)),
}


def digest(case: ScreenCase) -> str:
    """Return the hash of a case's picture, which is part of its entry's key."""
    return hashlib.sha256(base64.b64decode(case.image["image_url"]["url"].partition(",")[2])).hexdigest()


def entry_of(store: redis.Redis, case: ScreenCase) -> str:
    """Return the key of a picture's entry, once it is there."""
    pattern = f"*:image:*:{digest(case)}"
    eventually(lambda: list(store.scan_iter(pattern, 1000)), "the embedding is in Redis")
    (name,) = store.scan_iter(pattern, 1000)
    return bytes(name).decode()


def stored(ask: Asker, store: redis.Redis) -> tuple[ScreenCase, dict[str, object], str, bytes]:
    """Ask about a new picture; return it, the answer's message, and its entry's key and value."""
    case = screen_cases("open", "home", 1, seed=next(_seeds))[0]
    response = ask.post(case.image, case.words)
    assert response.status_code == 200, response.text
    name = entry_of(store, case)
    value = store.get(name)
    assert isinstance(value, bytes)
    return case, response.json()["choices"][0]["message"], name, value


def answer_is(ask: Asker, case: ScreenCase, message: dict[str, object], cache: str) -> None:
    """Ask again: the answer is the same, and the embedding comes from there."""
    response = ask.post(case.image, case.words)
    assert response.status_code == 200, response.text
    assert caches(response.json()) == [cache]
    assert response.json()["choices"][0]["message"] == message


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_entry_is_computed_again(forgetful: Asker, store: redis.Redis, name: str) -> None:
    case, message, key, value = stored(forgetful, store)
    answer_is(forgetful, case, message, "redis")
    store.set(key, CHANGES[name](value))
    answer_is(forgetful, case, message, "miss")
    eventually(lambda: store.get(key) == value, "the right embedding is in Redis again")
    answer_is(forgetful, case, message, "redis")


def test_a_key_of_another_type_is_replaced(forgetful: Asker, store: redis.Redis) -> None:
    case, message, key, _ = stored(forgetful, store)
    store.delete(key)
    store.rpush(key, "a", "list")
    answer_is(forgetful, case, message, "miss")
    eventually(lambda: store.type(key) == b"string", "the right embedding is in Redis again")
    answer_is(forgetful, case, message, "redis")


def test_the_entry_of_another_picture_is_not_taken(forgetful: Asker, store: redis.Redis) -> None:
    case, message, key, _ = stored(forgetful, store)
    *_, foreign = stored(forgetful, store)
    store.set(key, foreign)
    answer_is(forgetful, case, message, "miss")


def test_who_does_not_know_the_secret_forges_nothing(mesh: Mesh, forgetful: Asker, store: redis.Redis) -> None:
    case, message, key, value = stored(forgetful, store)
    embedding = Embedding.FromString(value[MAC_BYTES:])
    embedding.transcript = "打开相机"
    for secret in (b"", b"guessed", mesh.serve_token.encode()):
        serialized = embedding.SerializeToString()
        mac = hmac.new(secret, key.encode() + b"\0" + serialized, hashlib.sha256).digest()
        store.set(key, mac + serialized)
        answer_is(forgetful, case, message, "miss")
        eventually(lambda: store.get(key) == value, "the right embedding is in Redis again")
