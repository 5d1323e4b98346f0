"""A Generate request in protobuf as the engine's Request: prompt, sampling, reasoning, format and adapter."""

from collections.abc import Sequence

from autoglm.common.context_length import PromptText, context_exceeded
from autoglm.common.deadlines import Deadline
from autoglm.common.errors import InvalidRequest, NotFound
from autoglm.decoder.engine.request import AdapterRef, Request, SamplingConfig
from autoglm.decoder.format_limits import check_sizes
from autoglm.decoder.model import DecoderModel
from autoglm.decoder.stream import MAX_BACKLOG
from autoglm.decoder.tools import description, in_words, written
from autoglm.fusion.compose import PromptTooLong
from autoglm.fusion.prompt import Media, Prompt, PromptMessage, Role
from autoglm.v1 import decoder_pb2, generation_pb2

ROLES: dict[generation_pb2.Role.ValueType, Role] = {
    generation_pb2.ROLE_SYSTEM: "system",
    generation_pb2.ROLE_USER: "user",
    generation_pb2.ROLE_ASSISTANT: "assistant",
    generation_pb2.ROLE_TOOL: "tool",
}


def read(
    message: decoder_pb2.DecoderServiceGenerateRequest,
    model: DecoderModel,
    deadline: Deadline = Deadline(),  # noqa: B008 - it is frozen
) -> Request:
    """Return what `message` asks of the engine.

    Raises InvalidRequest, which names the field, for what `model` cannot do, NotFound for an adapter that its bundle
    does not have, DeadlineExceeded between two steps past `deadline`, and what Formats.read raises.
    """
    check_sizes(message)
    prompt = _prompt(message, model, deadline)
    deadline.remaining()
    return Request(
        prompt,
        _sampling(message.sampling, model),
        model.context,
        salt=message.cache_salt.encode(),
        thinking=model.thinking(prompt, _thinking_budget(message.sampling)),
        grammar=model.formats.read(message, deadline),
        adapter=_adapter(message.adapter, model) if message.adapter else None,
        max_backlog=MAX_BACKLOG,
    )


def _prompt(message: decoder_pb2.DecoderServiceGenerateRequest, model: DecoderModel, deadline: Deadline) -> Prompt:
    if not message.messages:
        raise InvalidRequest("a conversation needs at least one message", param="messages")
    if message.tools and not model.composer.takes_tools:
        raise InvalidRequest(f"the chat template of {model.bundle.name} does not support tools", param="tools")
    # Text that is too long for certain is neither parsed nor tokenized.
    _text(message).check(model.context, model.max_text_bytes, messages="messages", tools="tools")
    turns = [_turn(turn, model) for turn in message.messages]
    if _least_tokens(turns) >= model.context:
        raise _too_long(model)
    deadline.remaining()
    thinking = message.enable_thinking if message.HasField("enable_thinking") else None
    tools = [description(tool) for tool in message.tools]
    try:
        prompt = model.composer.compose(turns, thinking, tools, checkpoint=deadline.remaining, most=model.context)
    except PromptTooLong:
        raise _too_long(model) from None
    if (used := len(prompt.token_ids)) >= model.context:
        raise _too_long(model, used)
    return prompt


def _too_long(model: DecoderModel, used: int | None = None) -> InvalidRequest:
    has = "more" if used is None else used
    return context_exceeded(model.context, f"the messages have {has}; shorten them", "messages")


def _text(message: decoder_pb2.DecoderServiceGenerateRequest) -> PromptText:
    return PromptText(
        texts=[part.text for turn in message.messages for part in turn.parts],
        calls=[call.function for turn in message.messages for call in turn.tool_calls],
        tools=[tool.function for tool in message.tools],
    )


def _least_tokens(turns: Sequence[PromptMessage]) -> int:
    """Return the fewest tokens that `turns` can have: one for each text, name and argument, those of media in full."""
    parts = [part for turn in turns for part in turn.parts]
    calls = [call for turn in turns for call in turn.calls]
    texts = [*parts, *(each for call in calls for each in (call.name, *call.arguments, *call.arguments.values()))]
    return sum(len(each.tokens) if isinstance(each, Media) else each != "" for each in texts)


def _turn(turn: decoder_pb2.DecoderMessage, model: DecoderModel) -> PromptMessage:
    if turn.role not in ROLES:
        raise InvalidRequest(f"unknown role {turn.role}", param="messages.role")
    parts = (
        part.text if part.WhichOneof("part") == "text" else model.media(part.media, "messages") for part in turn.parts
    )
    said = PromptMessage(ROLES[turn.role], tuple(parts), tuple(written(call) for call in turn.tool_calls))
    return said if model.composer.takes_tools else in_words(said)


def _sampling(params: generation_pb2.SamplingParams, model: DecoderModel) -> SamplingConfig:
    """Return the parameters, with defaults for those that are not set."""
    known = model.composer.vocabulary
    if odd := [token_id for token_id in params.logit_bias if token_id >= known]:
        raise InvalidRequest(f"logit_bias names token {odd[0]}; there are {known}", param="sampling.logit_bias")
    given = {field.name: value for field, value in params.ListFields() if field.name in SamplingConfig.__slots__}
    given |= {"stop": tuple(params.stop), "logit_bias": dict(params.logit_bias)}
    return SamplingConfig(**{"max_tokens": model.max_new_tokens} | given)


def _thinking_budget(params: generation_pb2.SamplingParams) -> int | None:
    return params.max_thinking_tokens if params.HasField("max_thinking_tokens") else None


def _adapter(name: str, model: DecoderModel) -> AdapterRef:
    if name not in model.adapters.names:
        raise NotFound(
            f"bundle {model.bundle.name} has no adapter {name[:100]!r}", param="model", code="model_not_found"
        )
    return AdapterRef(name, model.bundle.adapters[name].revision)
