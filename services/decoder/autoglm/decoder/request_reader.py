"""A Generate request in protobuf as the engine's Request: prompt, sampling, reasoning, format and adapter."""

from autoglm.common.errors import InvalidRequest, NotFound
from autoglm.decoder.engine.request import AdapterRef, GrammarSpec, Request, SamplingConfig
from autoglm.decoder.model import DecoderModel
from autoglm.decoder.stream import MAX_BACKLOG
from autoglm.decoder.tools import ToolFunction, description, grammar, is_single, written
from autoglm.fusion.layout import Layout
from autoglm.fusion.prompt import Prompt, PromptMessage, Role
from autoglm.v1 import decoder_pb2, generation_pb2

ROLES: dict[generation_pb2.Role.ValueType, Role] = {
    generation_pb2.ROLE_SYSTEM: "system",
    generation_pb2.ROLE_USER: "user",
    generation_pb2.ROLE_ASSISTANT: "assistant",
    generation_pb2.ROLE_TOOL: "tool",
}


def read(message: decoder_pb2.DecoderServiceGenerateRequest, model: DecoderModel) -> Request:
    """Return what `message` asks of the engine; raises InvalidRequest, which names the field, for what `model` cannot
    do, NotFound for an adapter that its bundle does not have."""
    prompt = _prompt(message, model)
    spec = _grammar(message, model.composer.layout)
    if spec is not None:
        _check_grammar(spec, message, model)
    return Request(
        prompt,
        _sampling(message.sampling, model),
        model.context,
        salt=message.cache_salt.encode(),
        thinking=model.thinking(prompt, _thinking_budget(message.sampling)),
        grammar=spec,
        adapter=_adapter(message.adapter, model) if message.adapter else None,
        max_backlog=MAX_BACKLOG,
    )


def _prompt(message: decoder_pb2.DecoderServiceGenerateRequest, model: DecoderModel) -> Prompt:
    if not message.messages:
        raise InvalidRequest("a conversation needs at least one message", param="messages")
    uses_tools = message.tools or any(turn.tool_calls for turn in message.messages)
    if uses_tools and not model.composer.takes_tools:
        raise InvalidRequest(f"the chat template of {model.bundle.name} does not support tools", param="tools")
    turns = [_turn(turn, model) for turn in message.messages]
    thinking = message.enable_thinking if message.HasField("enable_thinking") else None
    prompt = model.composer.compose(turns, thinking, [description(tool) for tool in message.tools])
    if (used := len(prompt.token_ids)) >= model.context:
        raise InvalidRequest(
            f"this model's maximum context length is {model.context} tokens, but the messages have {used}; shorten"
            " them",
            param="messages",
            code="context_length_exceeded",
        )
    return prompt


def _turn(turn: decoder_pb2.DecoderMessage, model: DecoderModel) -> PromptMessage:
    if turn.role not in ROLES:
        raise InvalidRequest(f"unknown role {turn.role}", param="messages.role")
    parts = (
        part.text if part.WhichOneof("part") == "text" else model.media(part.media, "messages") for part in turn.parts
    )
    return PromptMessage(ROLES[turn.role], tuple(parts), tuple(written(call) for call in turn.tool_calls))


def _sampling(params: generation_pb2.SamplingParams, model: DecoderModel) -> SamplingConfig:
    """Return the parameters, with defaults for those that are not set."""
    known = model.composer.vocabulary
    if odd := [token_id for token_id in params.logit_bias if token_id >= known]:
        raise InvalidRequest(f"logit_bias names token {odd[0]}; there are {known}", param="logit_bias")
    given = {field.name: value for field, value in params.ListFields() if field.name in SamplingConfig.__slots__}
    return SamplingConfig(**given | {"stop": tuple(params.stop), "logit_bias": dict(params.logit_bias)})


def _thinking_budget(params: generation_pb2.SamplingParams) -> int | None:
    return params.max_thinking_tokens if params.HasField("max_thinking_tokens") else None


def _grammar(message: decoder_pb2.DecoderServiceGenerateRequest, layout: Layout) -> GrammarSpec | None:
    """Return what the answer has to match: function calls, if some are required, else the format that is asked for."""
    if _requires_call(message):
        name = message.tool_choice.function
        offered = [ToolFunction.of(tool) for tool in message.tools if name in ("", tool.function.name)]
        return GrammarSpec("grammar", grammar(offered, is_single(message), layout.tool_call))
    params = message.sampling
    kind = params.WhichOneof("structured_output")
    if kind is None:
        return None
    return GrammarSpec(kind, tuple(params.choice.texts) if kind == "choice" else str(getattr(params, kind)))


def _requires_call(message: decoder_pb2.DecoderServiceGenerateRequest) -> bool:
    choice = message.tool_choice
    return bool(choice.function) or choice.mode == generation_pb2.TOOL_CHOICE_MODE_REQUIRED


def _check_grammar(spec: GrammarSpec, message: decoder_pb2.DecoderServiceGenerateRequest, model: DecoderModel) -> None:
    try:
        model.grammars.make(spec)
    except InvalidRequest as error:
        raise (error.at("tools") if _requires_call(message) else error) from None


def _adapter(name: str, model: DecoderModel) -> AdapterRef:
    if name not in model.adapters.names:
        raise NotFound(
            f"bundle {model.bundle.name} has no adapter {name[:100]!r}", param="model", code="model_not_found"
        )
    return AdapterRef(name, model.bundle.adapters[name].revision)
