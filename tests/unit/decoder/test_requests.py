"""What goes into the engine's core and comes out of it can be pickled: it could run in a process of its own."""

import pickle
from dataclasses import fields
from typing import Any

import pytest
import torch

from autoglm.common.errors import MeshError, RateLimited
from autoglm.decoder.engine.core import EngineCore
from autoglm.decoder.engine.engine import Abort, Acknowledgement
from autoglm.decoder.engine.models.glm import Glm
from autoglm.decoder.engine.request import (
    AdapterRef,
    ChosenToken,
    GrammarSpec,
    PrefillStats,
    Request,
    RequestOutput,
    SamplingConfig,
    Thinking,
)
from autoglm.decoder.engine.runner import Runner
from autoglm.decoder.engine.sampling import BrokenLogits
from autoglm.decoder.engine.sequence import ThinkingState
from autoglm.fusion.compose import Composer
from autoglm.fusion.prompt import Media, PromptMessage
from autoglm.training.stages.fusion_decoder import FusionDecoder

from .engines import CONTEXT, LENGTHS, SLOTS, WIDE, prompts


def copied(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def same(one: Any, other: Any) -> bool:
    """Compare field by field; media and their tensors have no equality of their own."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other) and one.dtype == other.dtype
    if isinstance(one, tuple):
        return len(one) == len(other) and all(same(*pair) for pair in zip(one, other, strict=True))
    if hasattr(one, "__dataclass_fields__"):
        names = [field.name for field in fields(one)]
        return type(one) is type(other) and all(same(getattr(one, name), getattr(other, name)) for name in names)
    return bool(one == other)


def test_a_request_survives_pickling_with_its_media(composer: Composer) -> None:
    torch.manual_seed(6)
    screen = Media("image", torch.randn(12, 320, dtype=torch.bfloat16), grid=(3, 4))
    prompt = composer.compose([PromptMessage("user", (screen, Media("audio", torch.randn(5, 1536), "hi"), "Where?"))])
    request = Request(
        prompt,
        SamplingConfig(temperature=0.5, stop=("END",), seed=3, logit_bias={7: 1.5}, top_logprobs=2),
        512,
        salt=b"tenant",
        thinking=Thinking(1, 2, inside=True, budget=9),
        grammar=GrammarSpec("choice", ("Camera", "相机")),
        adapter=AdapterRef("phone", "abc"),
        max_backlog=256,
    )
    again = copied(request)
    assert same(again, request)
    assert again.cache_salt == request.cache_salt != b"tenant"
    assert again.max_new_tokens == 512 - len(prompt.token_ids)
    changed = Media("image", screen.tokens + 1, grid=(3, 4))
    assert not same(copied(changed), screen)


RANKED = ChosenToken(7, -0.5, ((7, -0.5), (8, -1.0)))


@pytest.mark.parametrize(
    "message",
    [
        RequestOutput(3, RANKED, None, PrefillStats(9.0, 1.0, 2.0, 64, {"image": 0.1})),
        RequestOutput(3, ChosenToken(8), "length"),
        RequestOutput(3, finish="stop"),
        Abort(3),
        Acknowledgement(3, 64),
    ],
)
def test_outputs_and_messages_survive_pickling(message: object) -> None:
    assert copied(message) == message


@pytest.mark.parametrize("error", [BrokenLogits(), RateLimited("later", retry_after=2.5), RuntimeError("no memory")])
def test_errors_survive_pickling(error: Exception) -> None:
    again = copied(RequestOutput(3, finish=error)).finish
    assert (type(again), str(again)) == (type(error), str(error))
    if isinstance(error, MeshError):
        assert (again.param, again.retry_after) == (error.param, error.retry_after)


def test_a_core_answers_what_is_pickled_both_ways(
    glm: Glm, assistant: FusionDecoder, composer: Composer, expected: list[list[int]]
) -> None:
    """Without a thread: step by step, as a loop in another process would."""
    core = EngineCore(Runner(glm, assistant.fusion, SLOTS, WIDE.max_num_batched_tokens), WIDE, stops=())
    requests = [
        Request(prompt, SamplingConfig(temperature=0, max_tokens=n), CONTEXT)
        for prompt, n in zip(prompts(composer), LENGTHS, strict=True)
    ]
    said: dict[int, list[int]] = {request.id: [] for request in requests}
    for request in requests:
        core.add(copied(request))
    while core.scheduler.has_work:
        for outputs in core.step():
            for output in copied(outputs):
                said[output.request_id] += [output.token.token_id] if output.token else []
    assert list(said.values()) == expected


def test_reasoning_is_counted_and_ends_with_its_mark() -> None:
    state = ThinkingState(Thinking(opens=1, closes=2, inside=False, budget=3), inside=False)
    for number, token in enumerate((1, 5, 5, 5)):
        assert not state.must_close
        state.advance(token, first=number == 0)
    assert (state.must_close, state.num_tokens) == (True, 3)
    state.advance(2, first=False)
    assert (state.must_close, state.inside, state.num_tokens) == (False, False, 3)
    state.advance(1, first=False)
    assert not state.inside  # only the first token opens it
