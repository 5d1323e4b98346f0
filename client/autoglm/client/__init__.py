"""A typed client of the mesh's gRPC API: Client blocks, AsyncClient is for asyncio.

>>> from autoglm.client import Client
>>> with Client("localhost:50051") as client:
...     print(client.chat("打开游戏", images=[Path("home.png")]).text)

Every failure is a MeshError; autoglm.common.errors has the tree of them.
"""

from autoglm.client.aio import AsyncClient, AsyncStream
from autoglm.client.requests import EmbedOptions, File, Message, Options, Sampling
from autoglm.client.results import (
    Answer,
    Embeddings,
    MediaStage,
    Model,
    Piece,
    Stages,
    Token,
    Transcript,
    TranscriptSegment,
    TranscriptWord,
    Usage,
)
from autoglm.client.sync import Client, Stream
from autoglm.common.errors import (
    AuthenticationFailed,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    MediaUnknown,
    MeshError,
    ModalityUnavailable,
    NotFound,
    PermissionDenied,
    RateLimited,
    RequestTooLarge,
    UnsupportedMedia,
    UpstreamUnavailable,
)

__all__ = [
    "Answer",
    "AsyncClient",
    "AsyncStream",
    "AuthenticationFailed",
    "Client",
    "DeadlineExceeded",
    "EmbedOptions",
    "Embeddings",
    "File",
    "InternalError",
    "InvalidRequest",
    "MediaStage",
    "MediaUnknown",
    "MeshError",
    "Message",
    "ModalityUnavailable",
    "Model",
    "NotFound",
    "Options",
    "PermissionDenied",
    "Piece",
    "RateLimited",
    "RequestTooLarge",
    "Sampling",
    "Stages",
    "Stream",
    "Token",
    "Transcript",
    "TranscriptSegment",
    "TranscriptWord",
    "UnsupportedMedia",
    "UpstreamUnavailable",
    "Usage",
]
