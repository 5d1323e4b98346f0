"""Load that touches every metric of a mesh: each kind of request, the ways in which they fail, and every cache."""

import http.server
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import trustme
import yaml

from autoglm.gateway.admission.key_file import digest_of
from autoglm.v1 import chat_pb2
from autoglm.v1.chat_pb2_grpc import ChatServiceStub
from autoglm.v1.generation_pb2 import ROLE_USER

from .asking import CHAT, MODEL
from .mesh import Mesh
from .unit.gateway.samples import audio_part, image_part, png, wav
from .waiting import NET_SECONDS

KEY = "sk-monitored"


def key_file(folder: Path) -> str:
    """Write a key file with KEY, and return its path."""
    path = folder / "keys.yaml"
    path.write_text(yaml.safe_dump({"tenants": [{"name": "monitored", "keys": [digest_of(KEY)]}]}))
    return str(path)


@dataclass(frozen=True, slots=True)
class MediaServer:
    """A server on this machine that a gateway may fetch media from."""

    port: int
    certificates: Path

    @property
    def environment(self) -> Mapping[str, str]:
        """What a mesh needs to fetch from it."""
        return {
            "SSL_CERT_FILE": str(self.certificates),
            "AUTOGLM_ALLOWED_MEDIA_DOMAINS": f"localhost:{self.port}",
            "AUTOGLM_ALLOWED_PRIVATE_NETWORKS": "127.0.0.1/32,::1/128",
        }

    def url(self, number: int) -> str:
        """Return the URL of one of its pictures."""
        return f"https://localhost:{self.port}/{number}.png"


class _Pictures(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = png(30 + int(self.path.strip("/").partition(".")[0]), 20)
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def running_media_server(folder: Path) -> Iterator[MediaServer]:
    """Run it in the block; its CA certificate goes into `folder`."""
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(folder / "ca.pem")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Pictures) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield MediaServer(server.server_port, folder / "ca.pem")
        finally:
            server.shutdown()
            thread.join()


def send_everything(mesh: Mesh, second: str, media: MediaServer, number: int) -> None:
    """Send a request of every kind to a mesh, and to a second gateway of it; `number` makes pictures and recordings
    that were not sent before."""
    image, recording = image_part(png(50 + number, 40)), audio_part(wav(0.5 + number / 10))
    with _client(mesh.http_url) as http, _client(second) as other:
        for client in (http, http, other):  # a miss, a hit in the gateway, a hit in Redis
            _chat(client, "What is this?", image, recording).raise_for_status()
        _chat(http, "What is this?", {"type": "image_url", "image_url": {"url": media.url(number)}}).raise_for_status()
        _send_text(http)
        _send_mistakes(http, number)
    _send_over_grpc(mesh)


def _client(address: str) -> httpx.Client:
    headers = {"authorization": f"Bearer {KEY}"}
    return httpx.Client(base_url=address, headers=headers, timeout=NET_SECONDS, trust_env=False)


def _chat(client: httpx.Client, text: str, *parts: Any, **fields: Any) -> httpx.Response:
    content = [*parts, {"type": "text", "text": text}]
    body = {"model": MODEL, "messages": [{"role": "user", "content": content}], "max_tokens": 16, **fields}
    return client.post(CHAT, json=body)


def _send_text(client: httpx.Client) -> None:
    for stream in (False, True):
        _chat(client, "1+1", stream=stream).raise_for_status()
    client.post("/v1/responses", json={"model": MODEL, "input": "1+1"}).raise_for_status()
    client.post("/v1/embeddings", json={"model": MODEL, "input": "1+1"}).raise_for_status()
    spoken = {"file": ("a.wav", wav(1))}
    client.post("/v1/audio/transcriptions", files=spoken, data={"model": MODEL}).raise_for_status()
    client.get("/v1/models").raise_for_status()


def _send_mistakes(client: httpx.Client, number: int) -> None:
    assert _chat(client, "1+1", temperature=9).status_code == 400
    broken = png(60 + number, 40)[:60] + bytes(30)
    assert _chat(client, "What is this?", image_part(broken)).status_code == 415
    late = {"model": MODEL, "messages": [{"role": "user", "content": "1+1"}]}
    assert client.post(CHAT, json=late, headers={"x-request-timeout": "0.000001"}).status_code == 504
    story = late | {"stream": True, "max_tokens": 500}
    with client.stream("POST", CHAT, json=story) as response:
        next(response.iter_lines())  # and leave


def _send_over_grpc(mesh: Mesh) -> None:
    message = chat_pb2.ChatMessage(role=ROLE_USER, parts=[chat_pb2.ContentPart(text="1+1")])
    chat = chat_pb2.ChatRequest(messages=[message])
    with grpc.insecure_channel(mesh.grpc_address) as channel:
        stub = ChatServiceStub(channel)
        options: dict[str, Any] = {"metadata": (("authorization", f"Bearer {KEY}"),), "timeout": NET_SECONDS}
        stub.Complete(chat_pb2.CompleteRequest(chat=chat), **options)
        stream = stub.StreamComplete(chat_pb2.StreamCompleteRequest(chat=chat), **options)
        next(stream)
        stream.cancel()
