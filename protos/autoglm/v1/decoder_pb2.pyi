import datetime

from autoglm.v1 import embedding_pb2 as _embedding_pb2
from autoglm.v1 import generation_pb2 as _generation_pb2
from autoglm.v1 import modality_pb2 as _modality_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DecoderPart(_message.Message):
    __slots__ = ("text", "media")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    MEDIA_FIELD_NUMBER: _ClassVar[int]
    text: str
    media: _embedding_pb2.Embedding
    def __init__(self, text: _Optional[str] = ..., media: _Optional[_Union[_embedding_pb2.Embedding, _Mapping]] = ...) -> None: ...

class DecoderMessage(_message.Message):
    __slots__ = ("role", "parts", "tool_calls")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALLS_FIELD_NUMBER: _ClassVar[int]
    role: _generation_pb2.Role
    parts: _containers.RepeatedCompositeFieldContainer[DecoderPart]
    tool_calls: _containers.RepeatedCompositeFieldContainer[_generation_pb2.ToolCall]
    def __init__(self, role: _Optional[_Union[_generation_pb2.Role, str]] = ..., parts: _Optional[_Iterable[_Union[DecoderPart, _Mapping]]] = ..., tool_calls: _Optional[_Iterable[_Union[_generation_pb2.ToolCall, _Mapping]]] = ...) -> None: ...

class DecoderServiceGenerateRequest(_message.Message):
    __slots__ = ("messages", "sampling", "enable_thinking", "return_reasoning", "timeout", "request_id", "cache_salt", "adapter", "tools", "tool_choice", "parallel_tool_calls")
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    ENABLE_THINKING_FIELD_NUMBER: _ClassVar[int]
    RETURN_REASONING_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    CACHE_SALT_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    TOOLS_FIELD_NUMBER: _ClassVar[int]
    TOOL_CHOICE_FIELD_NUMBER: _ClassVar[int]
    PARALLEL_TOOL_CALLS_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[DecoderMessage]
    sampling: _generation_pb2.SamplingParams
    enable_thinking: bool
    return_reasoning: bool
    timeout: _duration_pb2.Duration
    request_id: str
    cache_salt: str
    adapter: str
    tools: _containers.RepeatedCompositeFieldContainer[_generation_pb2.Tool]
    tool_choice: _generation_pb2.ToolChoice
    parallel_tool_calls: bool
    def __init__(self, messages: _Optional[_Iterable[_Union[DecoderMessage, _Mapping]]] = ..., sampling: _Optional[_Union[_generation_pb2.SamplingParams, _Mapping]] = ..., enable_thinking: bool = ..., return_reasoning: bool = ..., timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., request_id: _Optional[str] = ..., cache_salt: _Optional[str] = ..., adapter: _Optional[str] = ..., tools: _Optional[_Iterable[_Union[_generation_pb2.Tool, _Mapping]]] = ..., tool_choice: _Optional[_Union[_generation_pb2.ToolChoice, _Mapping]] = ..., parallel_tool_calls: bool = ...) -> None: ...

class DecoderServiceGenerateResponse(_message.Message):
    __slots__ = ("text", "reasoning", "logprobs", "finish", "tool_calls")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    REASONING_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALLS_FIELD_NUMBER: _ClassVar[int]
    text: str
    reasoning: str
    logprobs: _containers.RepeatedCompositeFieldContainer[_generation_pb2.LogprobEntry]
    finish: DecoderFinish
    tool_calls: _containers.RepeatedCompositeFieldContainer[_generation_pb2.ToolCall]
    def __init__(self, text: _Optional[str] = ..., reasoning: _Optional[str] = ..., logprobs: _Optional[_Iterable[_Union[_generation_pb2.LogprobEntry, _Mapping]]] = ..., finish: _Optional[_Union[DecoderFinish, _Mapping]] = ..., tool_calls: _Optional[_Iterable[_Union[_generation_pb2.ToolCall, _Mapping]]] = ...) -> None: ...

class DecoderFinish(_message.Message):
    __slots__ = ("finish_reason", "usage", "gates", "queue", "prefill", "decode")
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    GATES_FIELD_NUMBER: _ClassVar[int]
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    DECODE_FIELD_NUMBER: _ClassVar[int]
    finish_reason: _generation_pb2.FinishReason
    usage: _generation_pb2.Usage
    gates: _containers.RepeatedCompositeFieldContainer[_generation_pb2.Gate]
    queue: _duration_pb2.Duration
    prefill: _duration_pb2.Duration
    decode: _duration_pb2.Duration
    def __init__(self, finish_reason: _Optional[_Union[_generation_pb2.FinishReason, str]] = ..., usage: _Optional[_Union[_generation_pb2.Usage, _Mapping]] = ..., gates: _Optional[_Iterable[_Union[_generation_pb2.Gate, _Mapping]]] = ..., queue: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., prefill: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., decode: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class DecoderServiceEmbedRequest(_message.Message):
    __slots__ = ("input", "timeout")
    INPUT_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    input: _containers.RepeatedCompositeFieldContainer[DecoderPart]
    timeout: _duration_pb2.Duration
    def __init__(self, input: _Optional[_Iterable[_Union[DecoderPart, _Mapping]]] = ..., timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class DecoderServiceEmbedResponse(_message.Message):
    __slots__ = ("vectors", "prompt_tokens")
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    vectors: _embedding_pb2.Tensor
    prompt_tokens: int
    def __init__(self, vectors: _Optional[_Union[_embedding_pb2.Tensor, _Mapping]] = ..., prompt_tokens: _Optional[int] = ...) -> None: ...

class DecoderServiceDescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DecoderServiceDescribeResponse(_message.Message):
    __slots__ = ("bundle", "modalities", "context_length", "device", "num_requests_running", "num_requests_waiting", "int8", "kv_cache_usage_perc", "adapters", "embedding_width")
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    MODALITIES_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    NUM_REQUESTS_RUNNING_FIELD_NUMBER: _ClassVar[int]
    NUM_REQUESTS_WAITING_FIELD_NUMBER: _ClassVar[int]
    INT8_FIELD_NUMBER: _ClassVar[int]
    KV_CACHE_USAGE_PERC_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_WIDTH_FIELD_NUMBER: _ClassVar[int]
    bundle: str
    modalities: _containers.RepeatedScalarFieldContainer[_modality_pb2.Modality]
    context_length: int
    device: str
    num_requests_running: int
    num_requests_waiting: int
    int8: bool
    kv_cache_usage_perc: float
    adapters: _containers.RepeatedScalarFieldContainer[str]
    embedding_width: int
    def __init__(self, bundle: _Optional[str] = ..., modalities: _Optional[_Iterable[_Union[_modality_pb2.Modality, str]]] = ..., context_length: _Optional[int] = ..., device: _Optional[str] = ..., num_requests_running: _Optional[int] = ..., num_requests_waiting: _Optional[int] = ..., int8: bool = ..., kv_cache_usage_perc: _Optional[float] = ..., adapters: _Optional[_Iterable[str]] = ..., embedding_width: _Optional[int] = ...) -> None: ...
