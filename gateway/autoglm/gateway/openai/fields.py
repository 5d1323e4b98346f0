"""What becomes of the fields that chat and Responses take without honouring them: refused, or without effect.

Every field that the types of a request declare and that is not named here is honoured. docs/openai-api.md is generated
from both, and tests compare it with openai-python's types and with what the server does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autoglm.common.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Refused:
    """A field that is refused for the reason `why`, unless it is null or one of `harmless`, which ask for nothing."""

    why: str
    harmless: tuple[Any, ...] = ()


NOT_STORED = "this server stores nothing; send the earlier messages again"
NO_EFFECT: Mapping[str, str] = {
    "access_programs": "this server has no access programs",
    "image": "the vision encoder sizes each image by itself",
    "max_tool_calls": "it limits built-in tools, which this server does not have",
    "metadata": "checked, and repeated in a response; nothing is stored",
    "prediction": "a hint for speed alone",
    "prompt_cache_key": "the prefix cache finds shared prefixes by itself",
    "prompt_cache_options": "the prefix cache finds shared prefixes by itself",
    "prompt_cache_retention": "the prefix cache keeps what was used last",
    "reasoning.context": "the model reads no reasoning of earlier turns",
    "reasoning.generate_summary": "the reasoning is returned as it is",
    "reasoning.mode": "the model has one mode",
    "reasoning.summary": "the reasoning is returned as it is",
    "safety_identifier": "a name for statistics of OpenAI",
    "service_tier": "all requests are served alike; an answer says `default`",
    "store": "nothing is stored",
    "text.verbosity": "the model has no such control; ask for it in words",
    "truncation": "an input that is too long is refused in any case",
    "user": "a name for statistics of OpenAI",
    "verbosity": "the model has no such control; ask for it in words",
}

# Fields of vLLM and Zhipu that would change an answer.
_OF_OTHERS = {
    "add_generation_prompt": Refused("the chat template always opens the answer", (True,)),
    "allowed_token_ids": Refused("use structured_outputs"),
    "bad_words": Refused("use logit_bias", ([],)),
    "best_of": Refused("use n", (1,)),
    "chat_template": Refused("the bundle has its own chat template"),
    "continue_final_message": Refused("the model always begins a message of its own", (False,)),
    "do_sample": Refused("use temperature: 0", (True,)),
    "documents": Refused("put the documents into a message", ([],)),
    "echo": Refused("an answer does not repeat the prompt", (False,)),
    "guided_choice": Refused("vLLM's newer name is structured_outputs.choice"),
    "guided_grammar": Refused("vLLM's newer name is structured_outputs.grammar"),
    "guided_json": Refused("vLLM's newer name is structured_outputs.json"),
    "guided_regex": Refused("vLLM's newer name is structured_outputs.regex"),
    "ignore_eos": Refused("an answer ends at its end token", (False,)),
    "length_penalty": Refused("this server has no beam search", (1, 0)),
    "min_tokens": Refused("an answer ends at its end token", (0,)),
    "prompt_logprobs": Refused("only generated tokens have log probabilities"),
    "skip_special_tokens": Refused("special tokens are not part of an answer", (True,)),
    "stop_token_ids": Refused("use stop", ([],)),
    "truncate_prompt_tokens": Refused("an input that is too long is refused"),
    "use_beam_search": Refused("this server has no beam search", (False,)),
}
_BOTH = _OF_OTHERS | {
    "moderation": Refused("this server does not moderate"),
    "reasoning.exclude": Refused("with return_reasoning the reasoning is apart from the content", (False,)),
    "stream_options.include_obfuscation": Refused("events are not padded", (False,)),
}
CHAT_REFUSED: Mapping[str, Refused] = _BOTH | {
    "audio": Refused("the model answers with text only"),
    "background": Refused("this server does not answer in the background; use stream", (False,)),
    "conversation": Refused(NOT_STORED),
    "function_call": Refused("use tool_choice", ("none", "auto")),
    "functions": Refused("use tools", ([],)),
    "include": Refused("in chat, logprobs asks for log probabilities", ([],)),
    "input": Refused("in chat, the input is messages"),
    "instructions": Refused("in chat, instructions are a system message"),
    "max_output_tokens": Refused("in chat, the limit is max_completion_tokens"),
    "modalities": Refused("the model answers with text only", (["text"], [])),
    "previous_response_id": Refused(NOT_STORED),
    "prompt": Refused("this server stores no prompts; send the text in messages"),
    "text": Refused("in chat, the format is response_format"),
    "web_search_options": Refused("this server does not search the web"),
}
RESPONSES_REFUSED: Mapping[str, Refused] = _BOTH | {
    "background": Refused("this server does not answer in the background; use stream", (False,)),
    "background_options": Refused("this server does not answer in the background; use stream", ({},)),
    "context_management": Refused("this server does not compact a context; send what the model has to read", ([],)),
    "conversation": Refused(NOT_STORED),
    "logprobs": Refused("in Responses, include asks for log probabilities", (False,)),
    "max_completion_tokens": Refused("in Responses, the limit is max_output_tokens"),
    "max_tokens": Refused("in Responses, the limit is max_output_tokens"),
    "messages": Refused("in Responses, the messages are input"),
    "n": Refused("a response has one answer; send several requests", (1,)),
    "previous_response_id": Refused(NOT_STORED),
    "prompt": Refused("this server stores no prompts; send the text in instructions and input"),
    "prompt_cache_options.prewarm": Refused("a request always generates an answer", (False,)),
    "response_format": Refused("in Responses, the format is text.format"),
}


def refuse(given: object, refused: Mapping[str, Refused]) -> None:
    """Raise InvalidRequest for the first field of the JSON object `given` that is refused."""
    for path, field in refused.items():
        value = _at(given, path)
        if value is not None and not any(_same(value, each) for each in field.harmless):
            raise InvalidRequest(f"{path}: {field.why}", param=path, code="unsupported_parameter")


def _same(value: object, other: object) -> bool:
    return value == other and isinstance(value, bool) == isinstance(other, bool)  # to Python, true equals 1


def _at(given: object, path: str) -> object:
    """Return the value at `path`, None where there is none."""
    for name in path.split("."):
        given = given.get(name) if isinstance(given, dict) else None
    return given
