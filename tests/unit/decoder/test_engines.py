"""What every engine must do, asked of a bundle's decoder the way the servicer asks it.

The embedded engine on the CPU by default; AUTOGLM_TEST_ENGINE=vllm asks vLLM the same (tools/test_vllm.sh), and
AUTOGLM_TEST_DEVICE=cuda whichever it is on a GPU. transformers answers on the CPU, always.
"""

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
)
from transformers.models.glm.modeling_glm import GlmForCausalLM

from autoglm.common.bundle import Bundle, default_bundle
from autoglm.common.deadlines import Deadline
from autoglm.common.errors import RateLimited
from autoglm.decoder.call_grammar import grammar as calls_of
from autoglm.decoder.engine.request import (
    AdapterRef,
    ChosenToken,
    GrammarKind,
    GrammarSpec,
    PrefillStats,
    Request,
    RequestOutput,
    SamplingConfig,
)
from autoglm.decoder.model import DecoderModel, TokenIds
from autoglm.decoder.request_reader import read
from autoglm.decoder.settings import DecoderSettings
from autoglm.decoder.tool_functions import ToolFunction
from autoglm.decoder.tools import ToolCalls
from autoglm.fusion.gcma.fuse import fuse
from autoglm.fusion.gcma.layout import GCMA_LAYOUT
from autoglm.fusion.gcma.model import GcmaFusion
from autoglm.fusion.prompt import Media, Prompt, PromptMessage
from autoglm.v1.decoder_pb2 import DecoderMessage, DecoderPart, DecoderServiceGenerateRequest
from autoglm.v1.generation_pb2 import ROLE_USER, SamplingParams

ENGINE = os.environ.get("AUTOGLM_TEST_ENGINE", "embedded")
DEVICE = os.environ.get("AUTOGLM_TEST_DEVICE", "cpu")
CONTEXT, SLOTS = 1024, 3
GREEDY = SamplingConfig(temperature=0)
Outputs = SimpleQueue[RequestOutput]


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.open(default_bundle())


@pytest.fixture(scope="module")
def model(bundle: Bundle) -> Iterator[DecoderModel]:
    settings = {"engine": ENGINE, "device": DEVICE, "dtype": "float32", "max_num_seqs": SLOTS, "max_model_len": CONTEXT}
    loaded = DecoderModel.load(bundle, DecoderSettings.model_validate(settings | {"kv_cache_memory_bytes": 2**28}))
    yield loaded
    loaded.engine.close()


class Penalised(LogitsProcessor):  # type: ignore[misc]
    """Counts the prompt's tokens too, which generate does not see behind embeddings."""

    def __init__(self, prompt: Prompt, penalty: float) -> None:
        self._prompt, self._processor = torch.tensor([prompt.token_ids]), RepetitionPenaltyLogitsProcessor(penalty)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        penalised: torch.Tensor = self._processor(torch.cat([self._prompt, input_ids], 1), scores)
        return penalised


class Plain:
    """The same weights in transformers."""

    def __init__(self, bundle: Bundle) -> None:
        folder = bundle.part("decoder")
        self.glm = GlmForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.fusion = GcmaFusion.from_pretrained(bundle.part("fusion"), torch.float32)
        self.token_ids = TokenIds.of(folder, self.glm.config.vocab_size, GCMA_LAYOUT)

    def say(self, prompt: Prompt, n: int, penalty: float = 1.0, adapter: Path | None = None) -> list[int]:
        """Return the likeliest tokens behind the fused prompt."""
        glm = self.glm if adapter is None else PeftModel.from_pretrained(self.glm, adapter)
        fused = fuse(self.fusion, self.glm.get_input_embeddings(), prompt).embeddings[None]
        said = glm.generate(
            inputs_embeds=fused, max_new_tokens=n, do_sample=False, pad_token_id=0,
            attention_mask=torch.ones(fused.shape[:2], dtype=torch.long),
            logits_processor=LogitsProcessorList(
                [Penalised(prompt, penalty), SuppressTokensLogitsProcessor(self.token_ids.never)]
            ),
        )  # fmt: skip
        if adapter is not None:
            self.glm = glm.unload()
        return [token for token in said[0].tolist() if token not in self.token_ids.stops]


@pytest.fixture(scope="module")
def plain(bundle: Bundle) -> Plain:
    return Plain(bundle)


def prompts(model: DecoderModel) -> list[Prompt]:
    torch.manual_seed(0)
    image, audio = Media("image", torch.randn(49, 320)), Media("audio", torch.randn(17, 1536))
    parts: list[tuple[str | Media, ...]] = [
        ("Who are you?",), (image, "Where is Camera?"), (audio,), ("你好" * 60,),
        (image, audio, "Which app is it?" * 30),
    ]  # fmt: skip
    return [model.composer.compose([PromptMessage("user", part)]) for part in parts]


def submit(model: DecoderModel, prompt: Prompt, sampling: SamplingConfig, **more: Any) -> tuple[Request, Outputs]:
    outputs: Outputs = SimpleQueue()
    request = Request(prompt, sampling, CONTEXT, **more)
    model.engine.submit(request, outputs.put)
    return request, outputs


def all_of(outputs: Outputs) -> list[RequestOutput]:
    """Return all outputs of a request, once it has ended well."""
    said = [outputs.get(timeout=120)]
    while said[-1].finish is None:
        said.append(outputs.get(timeout=120))
    assert isinstance(said[-1].finish, str), said[-1].finish
    return said


def tokens_of(said: list[RequestOutput]) -> list[ChosenToken]:
    return [output.token for output in said if output.token is not None]


def ids(said: list[RequestOutput]) -> list[int]:
    return [token.token_id for token in tokens_of(said)]


def prefill_of(said: list[RequestOutput]) -> PrefillStats:
    assert said[0].prefill is not None
    return said[0].prefill


def answer(model: DecoderModel, prompt: Prompt, sampling: SamplingConfig, **more: Any) -> list[int]:
    return ids(all_of(submit(model, prompt, sampling, **more)[1]))


def idle(model: DecoderModel) -> bool:
    stats = model.engine.stats()
    return (stats.running, stats.waiting, stats.cache_usage) == (0, 0, 0)


def test_answers_are_transformers_token_for_token_twice(model: DecoderModel, plain: Plain) -> None:
    """Five prompts over three slots, with and without media, to their end."""
    wanted = [plain.say(prompt, 60) for prompt in prompts(model)]
    for time in range(2):
        asked = [submit(model, prompt, replace(GREEDY, max_tokens=60))[1] for prompt in prompts(model)]
        prefills = list[PrefillStats]()
        for outputs, tokens in zip(asked, wanted, strict=True):
            answered = all_of(outputs)
            assert ids(answered) == tokens
            assert answered[-1].finish == ("length" if len(tokens) == 60 else "stop")
            prefills.append(prefill_of(answered))
        assert (prefills[-1].num_cached_tokens > 0) == (time == 1)
        assert all(prefill.queue >= 0 and prefill.prefill >= 0 for prefill in prefills)
    assert set(prefills[-1].gates) == {"image", "audio"}
    assert model.engine.stats().prefix_hits > 0
    assert idle(model)


def test_prefixes_are_found_by_content_within_one_tenant(model: DecoderModel) -> None:
    torch.manual_seed(3)
    screens = [Media("image", torch.randn(49, 320)) for _ in range(2)]

    def cached(text: str, screen: Media, salt: bytes = b"a") -> int:
        prompt = model.composer.compose(
            [PromptMessage("system", ("Be kind. " * 90,)), PromptMessage("user", (screen, text * 30))]
        )
        _, outputs = submit(model, prompt, replace(GREEDY, max_tokens=3), salt=salt)
        return prefill_of(all_of(outputs)).num_cached_tokens

    assert cached("Where is Camera?", screens[0]) == 0
    whole = cached("Where is Camera?", screens[0])
    assert whole > cached("Where is Camera?", screens[1]) > 0
    assert cached("Where is Camera?", screens[0], salt=b"b") == 0


def test_penalty_bias_and_banned_tokens_as_in_transformers(model: DecoderModel, plain: Plain) -> None:
    prompt = prompts(model)[3]
    ours = answer(model, prompt, replace(GREEDY, repetition_penalty=3.0, max_tokens=30))
    assert ours == plain.say(prompt, 30, penalty=3.0)
    assert ours != plain.say(prompt, 30)
    pushed = replace(GREEDY, max_tokens=5, logit_bias={plain.token_ids.never[0]: 100.0, 300: 90.0})
    assert answer(model, prompt, pushed) == [300] * 5


def test_log_probabilities_are_the_models(model: DecoderModel, plain: Plain) -> None:
    prompt = prompts(model)[0]
    said = tokens_of(all_of(submit(model, prompt, replace(GREEDY, max_tokens=4, top_logprobs=3))[1]))
    with torch.inference_mode():
        fused = fuse(plain.fusion, plain.glm.get_input_embeddings(), prompt).embeddings[None]
        wanted = plain.glm(inputs_embeds=fused).logits[0, -1].log_softmax(-1)
    assert said[0].logprob == pytest.approx(float(wanted[said[0].token_id]), abs=1e-3)
    assert [token for token, _ in said[0].top] == wanted.topk(3).indices.tolist()
    assert all(len(chosen.top) == 3 for chosen in said)


def test_a_seed_gives_one_answer_and_draws_differ(model: DecoderModel, plain: Plain) -> None:
    bias = dict.fromkeys(plain.token_ids.stops, -100.0)  # behind its end the model is not sure of anything
    prompt, sampling = (
        prompts(model)[0],
        SamplingConfig(temperature=2, top_k=50, min_p=0.001, max_tokens=60, logit_bias=bias),
    )
    drawn = [answer(model, prompt, replace(sampling, seed=seed)) for seed in (7, 7, 8)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_an_abort_frees_everything_and_disturbs_nobody(model: DecoderModel, plain: Plain) -> None:
    first, second = prompts(model)[:2]
    victim, outputs = submit(
        model, first, SamplingConfig(temperature=2.0, logit_bias=dict.fromkeys(plain.token_ids.stops, -100))
    )
    others = submit(model, second, replace(GREEDY, max_tokens=40))[1]
    outputs.get(timeout=60)
    model.engine.abort(victim.id)
    assert ids(all_of(others)) == plain.say(second, 40)
    assert idle(model)


SCHEMA = {"type": "object", "properties": {"app": {"enum": ["Camera", "Maps"]}, "n": {"enum": [1, 22]}},
          "required": ["app", "n"], "additionalProperties": False}  # fmt: skip
MARKS = GCMA_LAYOUT.tool_call
OPEN_APP = ToolFunction("open_app", {"app": {"enum": ["Camera", "Maps"]}}, frozenset({"app"}), {})


@pytest.mark.parametrize(
    ("kind", "given", "fits"),
    [
        ("json_schema", json.dumps(SCHEMA), lambda text: json.loads(text)["app"] in ("Camera", "Maps")),
        ("regex", r"\[\d{1,3}, \d{1,3}\]", lambda text: re.fullmatch(r"\[\d{1,3}, \d{1,3}\]", text)),
        ("choice", ("Camera", "打开相机"), lambda text: text in ("Camera", "打开相机")),
        ("grammar", 'start: "a" "a"? "b"', lambda text: re.fullmatch("aa?b", text)),
        (
            "grammar",
            calls_of([OPEN_APP], True, GCMA_LAYOUT.tool_call),
            lambda text: ToolCalls([OPEN_APP], True, GCMA_LAYOUT.tool_call).feed(text)[1],
        ),
    ],
)
@pytest.mark.parametrize("thinks", [False, True])
def test_an_answer_has_the_format_that_was_asked_for(
    model: DecoderModel, kind: GrammarKind, given: str | tuple[str, ...], fits: Callable[[str], object], thinks: bool
) -> None:
    """With reasoning, the format begins behind it."""
    prompt = model.composer.compose([PromptMessage("user", ("Which app is open?",))], thinks)
    thinking = model.thinking(prompt, budget=9)
    said = answer(model, prompt, replace(GREEDY, max_tokens=80), grammar=GrammarSpec(kind, given), thinking=thinking)
    if thinks:
        assert thinking is not None
        said = said[said.index(thinking.closes) + 1 :]
    assert fits(model.composer.tokenizer.decode(said))


@pytest.mark.parametrize("budget", [0, 7])
def test_reasoning_ends_within_its_budget(model: DecoderModel, budget: int) -> None:
    prompt = model.composer.compose([PromptMessage("user", ("Hi",))], True)
    thinking = model.thinking(prompt, budget)
    assert thinking is not None
    said = answer(model, prompt, replace(GREEDY, max_tokens=40, logit_bias={thinking.closes: -90.0}), thinking=thinking)
    assert said.index(thinking.closes) == budget
    assert said.count(thinking.closes) == 1


def test_an_answer_without_a_limit_has_the_bundles(model: DecoderModel, plain: Plain, bundle: Bundle) -> None:
    """Free JSON of a model that repeats itself, for example. A request may ask for more."""
    limit = json.loads((bundle.part("decoder") / "generation_config.json").read_text())["max_new_tokens"]
    message = DecoderServiceGenerateRequest(
        messages=[DecoderMessage(role=ROLE_USER, parts=[DecoderPart(text="你好")])],
        sampling=SamplingParams(temperature=0, json_schema='{"type": "object"}'),
    )
    request = read(message, model, Deadline())
    assert (request.sampling.max_tokens, request.max_new_tokens) == (limit, limit)
    message.sampling.max_tokens = limit + 100
    assert read(message, model, Deadline()).max_new_tokens == limit + 100
    endless = replace(request.sampling, logit_bias=dict.fromkeys(plain.token_ids.stops, -100.0))
    outputs: Outputs = SimpleQueue()
    model.engine.submit(replace(request, sampling=endless, grammar=None, max_backlog=None), outputs.put)
    said = all_of(outputs)
    assert (len(ids(said)), said[-1].finish) == (limit, "length")


def test_adapters_answer_side_by_side_as_peft_computes_them(model: DecoderModel, plain: Plain, bundle: Bundle) -> None:
    prompt, (name,) = prompts(model)[0], model.adapters.names
    adapter = AdapterRef(name, bundle.adapters[name].revision)
    asked = [submit(model, prompt, replace(GREEDY, max_tokens=40), adapter=one)[1] for one in (adapter, None, adapter)]
    said = [ids(all_of(outputs)) for outputs in asked]
    assert said[0] == said[2] == plain.say(prompt, 40, adapter=bundle.adapter(name))
    assert said[1] == plain.say(prompt, 40) != said[0]


def test_a_slow_consumer_delays_no_other_and_loses_nothing(model: DecoderModel, plain: Plain) -> None:
    outputs, reached = SimpleQueue[RequestOutput](), Event()
    prompt = prompts(model)[3]

    def consumer(output: RequestOutput) -> None:
        outputs.put(output)
        if outputs.qsize() == 5:
            reached.set()

    sampling = replace(GREEDY, max_tokens=40, logit_bias=dict.fromkeys(plain.token_ids.stops, -100.0))
    request = Request(prompt, sampling, CONTEXT, max_backlog=5)
    model.engine.submit(request, consumer)
    assert reached.wait(60)
    assert answer(model, prompts(model)[0], replace(GREEDY, max_tokens=30)) == plain.say(prompts(model)[0], 30)
    assert outputs.qsize() == 5
    model.engine.acknowledge(request.id, 40)
    assert len(ids(all_of(outputs))) == 40


def test_one_failing_prompt_fails_alone(model: DecoderModel, plain: Plain) -> None:
    bad = model.composer.compose([PromptMessage("user", (Media("image", torch.zeros(49, 3)),))])
    _, broken = submit(model, bad, SamplingConfig(max_tokens=4))
    good = prompts(model)[1]
    assert answer(model, good, replace(GREEDY, max_tokens=12)) == plain.say(good, 12)
    assert isinstance(broken.get(timeout=60).finish, RuntimeError)
    assert model.engine.alive()


def test_who_cannot_be_answered_in_time_is_told_at_once(model: DecoderModel, plain: Plain) -> None:
    prompt = prompts(model)[3]
    endless = replace(GREEDY, logit_bias=dict.fromkeys(plain.token_ids.stops, -100.0))
    for _ in range(3 * SLOTS):  # it learns how fast it is
        submit(model, prompt, replace(endless, max_tokens=20))
    answer(model, prompt, replace(endless, max_tokens=20))
    queued = [submit(model, prompt, replace(endless, max_tokens=300))[0] for _ in range(SLOTS + 2)]
    late = Request(prompt, replace(GREEDY, max_tokens=10), CONTEXT)
    with pytest.raises(RateLimited, match="before the deadline") as refused:
        model.engine.submit(late, lambda output: None, within=1e-4)
    assert (refused.value.retry_after or 0) > 0
    for request in queued:
        model.engine.abort(request.id)
