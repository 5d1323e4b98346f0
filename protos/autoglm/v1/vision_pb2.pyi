import datetime

from autoglm.v1 import embedding_pb2 as _embedding_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class VisionServiceEncodeRequest(_message.Message):
    __slots__ = ("image", "timeout")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    image: bytes
    timeout: _duration_pb2.Duration
    def __init__(self, image: _Optional[bytes] = ..., timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class VisionServiceEncodeResponse(_message.Message):
    __slots__ = ("embedding", "times")
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    TIMES_FIELD_NUMBER: _ClassVar[int]
    embedding: _embedding_pb2.Embedding
    times: _embedding_pb2.EncoderTimes
    def __init__(self, embedding: _Optional[_Union[_embedding_pb2.Embedding, _Mapping]] = ..., times: _Optional[_Union[_embedding_pb2.EncoderTimes, _Mapping]] = ...) -> None: ...

class VisionServiceDescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class VisionServiceDescribeResponse(_message.Message):
    __slots__ = ("encoder",)
    ENCODER_FIELD_NUMBER: _ClassVar[int]
    encoder: _embedding_pb2.EncoderInfo
    def __init__(self, encoder: _Optional[_Union[_embedding_pb2.EncoderInfo, _Mapping]] = ...) -> None: ...
