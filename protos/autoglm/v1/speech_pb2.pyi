import datetime

from autoglm.v1 import embedding_pb2 as _embedding_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SpeechServiceEncodeRequest(_message.Message):
    __slots__ = ("audio", "timeout")
    AUDIO_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    audio: bytes
    timeout: _duration_pb2.Duration
    def __init__(self, audio: _Optional[bytes] = ..., timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class SpeechServiceEncodeResponse(_message.Message):
    __slots__ = ("embedding", "transcript", "times")
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    TRANSCRIPT_FIELD_NUMBER: _ClassVar[int]
    TIMES_FIELD_NUMBER: _ClassVar[int]
    embedding: _embedding_pb2.Embedding
    transcript: str
    times: _embedding_pb2.EncoderTimes
    def __init__(self, embedding: _Optional[_Union[_embedding_pb2.Embedding, _Mapping]] = ..., transcript: _Optional[str] = ..., times: _Optional[_Union[_embedding_pb2.EncoderTimes, _Mapping]] = ...) -> None: ...

class SpeechServiceTranscribeRequest(_message.Message):
    __slots__ = ("audio", "timeout")
    AUDIO_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    audio: bytes
    timeout: _duration_pb2.Duration
    def __init__(self, audio: _Optional[bytes] = ..., timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class SpeechServiceTranscribeResponse(_message.Message):
    __slots__ = ("text", "duration")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    DURATION_FIELD_NUMBER: _ClassVar[int]
    text: str
    duration: _duration_pb2.Duration
    def __init__(self, text: _Optional[str] = ..., duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class SpeechServiceDescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SpeechServiceDescribeResponse(_message.Message):
    __slots__ = ("encoder", "transcribes")
    ENCODER_FIELD_NUMBER: _ClassVar[int]
    TRANSCRIBES_FIELD_NUMBER: _ClassVar[int]
    encoder: _embedding_pb2.EncoderInfo
    transcribes: bool
    def __init__(self, encoder: _Optional[_Union[_embedding_pb2.EncoderInfo, _Mapping]] = ..., transcribes: bool = ...) -> None: ...
