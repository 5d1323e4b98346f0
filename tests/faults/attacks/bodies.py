"""Prompts and bodies that are long, or of very many parts."""

import gzip
import itertools
import random
from collections.abc import Callable, Iterator

from autoglm.v1.chat_pb2 import ChatMessage, ChatRequest, CompleteRequest, ContentPart
from autoglm.v1.generation_pb2 import ROLE_USER, SamplingParams

from .sending import CHAT, OK, REFUSED, TOO_LARGE, Attack, Send, asking, calling, chat_body, posting, user

MB = 10**6
TINY = b'{"role":"user","content":"a"}'
COMPLETE = "ChatService/Complete"


def prompt(size: int) -> Send:
    """A prompt of so many bytes, in words."""
    return asking(messages=user("word " * (size // 5)))


def long_word(size: int) -> Send:
    """A prompt of one word without an end, which tokenizers cannot split before they start."""
    return asking(messages=user("".join(random.Random(0).choices("abcdefgh", k=size))))


def whole_context(tokens: int) -> Send:
    """Prompts that fill most of the context, each of them new to the prefix cache."""
    drawn = random.Random()
    texts = (" ".join(str(drawn.randrange(10)) for _ in range(tokens // 2)) for _ in itertools.count())
    return lambda servers: asking(messages=user(next(texts)))(servers)


def tiny_messages(count: int) -> Send:
    """A conversation of so many messages of one letter."""
    return posting(CHAT, b'{"model":"autoglm-phone-9b","messages":[' + b",".join([TINY] * count) + b"]}")


def tiny_parts(count: int) -> Send:
    """A message of so many parts of one letter."""
    part = b'{"type":"text","text":"a"}'
    start = b'{"model":"autoglm-phone-9b","messages":[{"role":"user","content":['
    return posting(CHAT, start + b",".join([part] * count) + b"]}]}")


def tiny_grpc_messages(count: int) -> Send:
    """The same conversation over gRPC."""
    message = ChatMessage(role=ROLE_USER, parts=[ContentPart(text="a")])
    asked = CompleteRequest(chat=ChatRequest(messages=[message] * count, sampling=SamplingParams(max_tokens=4)))
    return calling(COMPLETE, itertools.repeat(asked.SerializeToString()))


def mutated(method: str) -> Send:
    """Good messages with bytes changed, cut off and added: most of them are no messages any more."""
    chat = ChatRequest(
        messages=[ChatMessage(role=ROLE_USER, parts=[ContentPart(text="hi")])], sampling=SamplingParams(max_tokens=2)
    )
    return calling(method, mutations(CompleteRequest(chat=chat).SerializeToString()))


def mutations(good: bytes) -> Iterator[bytes]:
    """Yield versions of a message, the same in every run."""
    drawn = random.Random(0)
    while True:
        data = bytearray(good)
        for _ in range(drawn.randrange(1, 6)):
            data[drawn.randrange(len(data))] = drawn.randrange(256)
        yield bytes(data[: drawn.randrange(1, len(data) + 1)]) + drawn.randbytes(drawn.randrange(8))


def gzip_bomb(size: int) -> Send:
    """A body that is a thousand times larger than what is sent."""
    return posting(CHAT, gzip.compress(b" " * size, 1), content_encoding="gzip")


def form_fields(count: int) -> Send:
    """A form of so many fields without a file."""
    field = b'--x\r\ncontent-disposition: form-data; name="a"\r\n\r\nb\r\n'
    body = field * count + b"--x--\r\n"
    return posting("/v1/audio/transcriptions", body, content_type="multipart/form-data; boundary=x")


def inputs(count: int) -> Send:
    """So many texts to embed."""
    body = b'{"model":"autoglm-phone-9b","input":[' + b",".join([b'"a"'] * count) + b"]}"
    return posting("/v1/embeddings", body)


def items(count: int) -> Send:
    """A response to so many items."""
    return posting("/v1/responses", b'{"model":"autoglm-phone-9b","input":[' + b",".join([TINY] * count) + b"]}")


def members(count: int) -> Send:
    """An object of so many members that no request has."""
    return posting(CHAT, b"{" + b",".join(b'"k%d":1' % number for number in range(count)) + b"}")


def of(send: Callable[..., Send], *arguments: object) -> Callable[[], Send]:
    """Return what makes an attack later."""
    return lambda: send(*arguments)


BODIES = (
    Attack("a prompt of 1 MB", of(prompt, MB), TOO_LARGE),
    Attack("a prompt of 10 MB", of(prompt, 10 * MB), TOO_LARGE),
    Attack("a prompt of 30 MB", of(prompt, 30 * MB), TOO_LARGE),
    Attack("a word of 400 kB", of(long_word, 400_000), TOO_LARGE),
    Attack("a prompt of 7000 tokens", of(whole_context, 7000), frozenset({OK})),
    Attack("900 000 messages", of(tiny_messages, 900_000), TOO_LARGE),
    Attack("900 000 messages over gRPC", of(tiny_grpc_messages, 900_000), TOO_LARGE),
    Attack("900 000 parts of a message", of(tiny_parts, 900_000), TOO_LARGE),
    Attack("900 000 items of a response", of(items, 900_000), TOO_LARGE),
    Attack("5 000 000 texts to embed", of(inputs, 5_000_000), TOO_LARGE),
    Attack("2 000 000 members of an object", of(members, 2_000_000), TOO_LARGE),
    Attack("500 000 fields of a form", of(form_fields, 500_000), TOO_LARGE),
    Attack("brackets, 10 MB deep", lambda: posting(CHAT, b"[" * 10 * MB), TOO_LARGE),
    Attack("a number of 10 MB", lambda: posting(CHAT, b'{"max_tokens":' + b"1" * 10 * MB + b"}"), TOO_LARGE),
    Attack("a gzip bomb", of(gzip_bomb, 500 * MB), TOO_LARGE),
    Attack("messages with bytes changed", of(mutated, COMPLETE), REFUSED | {OK, "not_found", "unsupported_media"}),
    Attack(
        "stop strings of 1 MB",
        lambda: posting(CHAT, chat_body(stop=["x" * MB, "y" * MB, "z" * MB])),
        TOO_LARGE | {OK},
    ),
)
