"""The embedded engine against transformers' own generate, token for token, whatever happens beside; and its faults."""

from collections.abc import Sequence as Rows
from dataclasses import replace
from queue import SimpleQueue
from threading import Event

import pytest
import torch
from torch import Tensor

from autoglm.bench.engine.checks import resident
from autoglm.common.errors import RateLimited, UpstreamUnavailable
from autoglm.decoder.engine.cache import BLOCK_SIZE, BlockCache, num_blocks
from autoglm.decoder.engine.core import EngineCore
from autoglm.decoder.engine.engine import EmbeddedEngine
from autoglm.decoder.engine.models.glm import Glm, View
from autoglm.decoder.engine.prefix_keys import block_keys
from autoglm.decoder.engine.request import Request, RequestOutput, SamplingConfig
from autoglm.decoder.engine.runner import Runner
from autoglm.decoder.engine.sampling import BrokenLogits
from autoglm.decoder.engine.scheduler import PrefillShare
from autoglm.decoder.engine.sequence import Sequence
from autoglm.decoder.engine.slots import Slots
from autoglm.decoder.engine.step_times import StepTimes
from autoglm.fusion.compose import Composer
from autoglm.fusion.prompt import Media, PromptMessage, Run
from autoglm.training.stages.fusion_decoder import FusionDecoder

from .engines import CONTEXT, GREEDY, LENGTHS, SLOTS, WIDE, Engines, collect, prompts, run_all, say, submit, theirs


@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("tokens", [16, 48, 4096])
def test_equals_transformers_token_for_token(
    engines: Engines, composer: Composer, expected: list[list[int]], tokens: int, keeps: bool
) -> None:
    """Five prompts over three slots, with and without media, in pieces of any size, the second time from the cache."""
    engine = engines(replace(WIDE, max_num_batched_tokens=tokens, enable_prefix_caching=keeps))
    assert run_all(engine, composer) == expected
    assert run_all(engine, composer) == expected
    assert (engine.stats().prefix_hits > 0) == keeps
    assert engine.stats().cache_usage == 0


def test_logits_equal_transformers(assistant: FusionDecoder, glm: Glm) -> None:
    torch.manual_seed(1)
    ids = torch.randint(0, 500, (2, 40))
    wanted = assistant.decoder(ids).logits[:, -1].detach()
    runner = Runner(glm, assistant.fusion, 2, CONTEXT)
    with torch.inference_mode():
        indices = torch.arange(40).expand(2, -1)
        view = View(glm.rope(indices[None]), slice(0, 2), indices, 40)
        got = glm(glm.embed(ids), view, runner.slots.stores)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_passes_in_larger_shapes_say_and_write_the_same(assistant: FusionDecoder, glm: Glm, composer: Composer) -> None:
    """As graphs compute them: more rows than sequences, more tokens than a piece has, more positions than anyone."""
    runner = Runner(glm, assistant.fusion, SLOTS, CONTEXT)
    running = [Sequence(Request(prompt, GREEDY, CONTEXT)) for prompt in prompts(composer)[:2]]
    for slot, sequence in enumerate(running):
        runner.prepare(sequence)
        assert sequence.inputs is not None
        embeddings, positions = sequence.inputs.take(sequence.num_tokens)
        runner.prepare(sequence)
        inputs = torch.cat([torch.ones(9, 256), embeddings])
        positions = torch.cat([torch.zeros(1, 9, dtype=torch.long), positions], dim=1)
        said = runner.prefill(sequence, slot, sequence.num_tokens)
        before = [store[slot, :, :CONTEXT].clone() for store in runner.slots.stores]
        places = torch.tensor([*[CONTEXT] * 9, *range(sequence.num_computed_tokens)])
        with torch.inference_mode():
            got = runner.prefill_chunk(inputs, positions, places, torch.tensor([slot]), CONTEXT)
            torch.testing.assert_close(got, said)
        for store, kept in zip(runner.slots.stores, before, strict=True):
            torch.testing.assert_close(store[slot, :, :CONTEXT], kept)
        sequence.output.append(7)
    for store in runner.slots.stores:
        store[2] = 9  # of somebody who is being read
    wanted = runner.decode(running)
    computed = [sequence.num_computed_tokens for sequence in running]
    with torch.inference_mode():
        got = runner.decode_step(torch.tensor([[7, 7, 0], [*computed, CONTEXT], [*computed, 0]]), CONTEXT)
    torch.testing.assert_close(got[:2], wanted, rtol=1e-4, atol=1e-4)
    assert all((store[2, :, :CONTEXT] == 9).all() for store in runner.slots.stores)


def test_a_full_cache_puts_the_youngest_back_and_answers_all(
    engines: Engines, composer: Composer, expected: list[list[int]]
) -> None:
    engine = engines(replace(WIDE, num_blocks=num_blocks(CONTEXT)))  # room for a third of what is asked at once
    assert run_all(engine, composer) == expected
    assert run_all(engine, composer) == expected
    long = prompts(composer)[3]  # both begin in three blocks and end in five
    pending = [submit(engine, long, replace(GREEDY, max_tokens=150))[1] for _ in range(3)]
    first, *others = (collect(events)[0] for events in pending)
    assert all(answer == first for answer in others)
    assert engine.stats().preemptions > 0
    assert engine.stats().cache_usage == 0


def test_prefixes_are_found_by_content_within_one_tenant(engines: Engines, composer: Composer) -> None:
    torch.manual_seed(3)
    engine, screens = engines(), [Media("image", torch.randn(49, 320)) for _ in range(2)]

    def cached(text: str, screen: Media, salt: bytes = b"a") -> int:
        system, user = PromptMessage("system", ("Be kind. " * 30,)), PromptMessage("user", (screen, text))
        return say(engine, composer.compose([system, user]), 3, salt)[1].num_cached_tokens

    assert cached("Where is Camera?", screens[0]) == 0
    whole = cached("Where is Camera?", screens[0])
    other = cached("Where is Camera?", screens[1])
    assert whole > other >= BLOCK_SIZE
    assert cached("Which app is it?", screens[0]) == whole
    assert cached("Where is Camera?", screens[0], salt=b"b") == 0


def test_a_conversation_goes_on_from_its_own_answer(engines: Engines, composer: Composer) -> None:
    engine, history = engines(), [PromptMessage("user", ("你好" * 40,))]
    prompt = composer.compose(history)
    answer, _ = say(engine, prompt, 100)
    said = composer.tokenizer.decode(answer)
    again = composer.compose([*history, PromptMessage("assistant", (said,)), PromptMessage("user", ("And now?",))])
    shared = next(
        (i for i, pair in enumerate(zip(prompt.token_ids + answer, again.token_ids, strict=False)) if len({*pair}) > 1),
        0,
    )
    _, prefill = say(engine, again, 3)
    assert prefill.num_cached_tokens == shared // BLOCK_SIZE * BLOCK_SIZE


def test_keys_tell_tokens_media_and_roles_apart(composer: Composer) -> None:
    torch.manual_seed(5)
    screen = torch.randn(49, 320)
    changed = screen.clone()
    changed[48, 319] += 1

    def keys(tokens: Tensor, text: str = "Where is Camera? " * 20, salt: bytes = b"") -> list[bytes]:
        return block_keys(composer.compose([PromptMessage("user", (Media("image", tokens), text))]), (), salt)

    first = keys(screen)
    assert first == keys(screen.clone())
    assert not {*first} & {*keys(changed)}
    assert not {*first} & {*keys(screen, salt=b"x")}
    assert first[0] == keys(screen, "Where is Camera? " * 10 + "no")[0]
    spoken, written = (composer.compose([PromptMessage(role, ("你好" * 70,))]) for role in ("assistant", "user"))
    assert not {*block_keys(spoken, (), b"")} & {*block_keys(written, (), b"")}


def test_keys_tell_grids_of_equal_bytes_apart(composer: Composer) -> None:
    tokens = torch.randn(12, 320, generator=torch.Generator().manual_seed(5))

    def keys(grid: tuple[int, ...]) -> list[bytes]:
        user = PromptMessage("user", (Media("image", tokens, grid=grid), "Where is Camera? " * 20))
        return block_keys(composer.compose([user]), (), b"")

    assert keys((2, 6)) == keys((2, 6))
    assert not {*keys((2, 6))} & {*keys((3, 4)), *keys((6, 2)), *keys(())}


def test_a_seed_gives_one_answer_whatever_runs_beside(engines: Engines, composer: Composer) -> None:
    engine = engines()
    prompt, sampling = prompts(composer)[1], SamplingConfig(temperature=1.2, top_p=0.9, top_k=50, seed=7, max_tokens=20)
    alone, _ = collect(submit(engine, prompt, sampling)[1])
    others = [submit(engine, other, SamplingConfig(max_tokens=30))[1] for other in prompts(composer)[:2]]
    beside, _ = collect(submit(engine, prompt, sampling)[1])
    for events in others:
        collect(events)
    assert alone == beside


def test_an_abort_frees_everything_and_disturbs_nobody(
    engines: Engines, assistant: FusionDecoder, composer: Composer
) -> None:
    engine, (first, second) = engines(), prompts(composer)[:2]
    victim, victims = submit(engine, first, replace(GREEDY, max_tokens=400))
    _, events = submit(engine, second, replace(GREEDY, max_tokens=40))
    victims.get(timeout=60)
    engine.abort(victim.id)
    assert collect(events)[0] == theirs(assistant, second, 40)
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.cache_usage) == (0, 0, 0)


def test_one_failing_prompt_fails_alone(engines: Engines, assistant: FusionDecoder, composer: Composer) -> None:
    engine, good = engines(), prompts(composer)[0]
    bad = composer.compose([PromptMessage("user", (Media("image", torch.zeros(49, 3)),))])
    _, broken = submit(engine, bad, SamplingConfig(max_tokens=4))
    _, events = submit(engine, good, replace(GREEDY, max_tokens=12))
    assert isinstance(collect(broken)[1], RuntimeError)
    assert collect(events)[0] == theirs(assistant, good, 12)
    assert engine.alive()


class Sick(Glm):
    """A model that fails, or says NaN, whenever one of the rows reads the token `poison`."""

    poison, memory = -1, False

    def forward(self, embeddings: Tensor, view: View, stores: Rows[Tensor]) -> Tensor:
        ill = (embeddings[:, -1] == self.embed.weight[self.poison]).all(-1)
        if self.memory and ill.any():
            raise torch.OutOfMemoryError("no memory for this one")
        logits: Tensor = super().forward(embeddings, view, stores)
        return logits.masked_fill(ill[:, None], torch.nan)


@pytest.mark.parametrize("memory", [True, False])
def test_what_fails_in_a_batch_fails_alone(
    assistant: FusionDecoder, composer: Composer, expected: list[list[int]], memory: bool
) -> None:
    """An out-of-memory step, and a model that says NaN: the others' answers do not change."""
    sick = Sick(assistant.decoder, CONTEXT)
    sick.memory = memory
    own = [{*answer[1:]} for answer in expected[:3]]
    sick.poison = next(
        token for token in expected[2][3:] if token not in own[0] | own[1] and token not in expected[2][:3]
    )
    engine = EmbeddedEngine(EngineCore(Runner(sick, assistant.fusion, SLOTS, CONTEXT), WIDE, stops=()))
    ends = [
        collect(submit(engine, prompt, replace(GREEDY, max_tokens=n))[1])
        for prompt, n in zip(prompts(composer)[:3], LENGTHS, strict=False)
    ]
    assert [tokens for tokens, _ in ends[:2]] == expected[:2]
    tokens, end = ends[2]
    assert tokens == expected[2][: expected[2].index(sick.poison) + 1]
    assert isinstance(end, torch.OutOfMemoryError if memory else BrokenLogits)
    assert run_one(engine, composer) == expected[0]
    engine.close()


def run_one(engine: EmbeddedEngine, composer: Composer) -> list[int]:
    return say(engine, prompts(composer)[0], LENGTHS[0])[0]


def test_a_consumer_that_does_not_keep_up_is_laid_aside(
    engines: Engines, composer: Composer, expected: list[list[int]]
) -> None:
    """It holds no slot and no cache meanwhile, and goes on where it was when it has caught up."""
    engine, outputs, reached = engines(), SimpleQueue[RequestOutput](), Event()
    prompt, sampling = prompts(composer)[3], replace(GREEDY, max_tokens=LENGTHS[3])
    request = Request(prompt, sampling, CONTEXT, max_backlog=10)

    def sink(output: RequestOutput) -> None:
        outputs.put(output)
        if outputs.qsize() == 10:
            reached.set()

    engine.submit(request, sink)
    assert reached.wait(60)
    assert run_one(engine, composer) == expected[0]
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.cache_usage, outputs.qsize()) == (0, 1, 0, 10)
    engine.acknowledge(request.id, LENGTHS[3])
    assert collect(outputs)[0] == expected[3]


def test_what_a_slow_consumer_has_said_stays_in_the_cache(engines: Engines, composer: Composer) -> None:
    """To go on it is not computed again, as long as nobody needs the space."""
    engine, outputs, reached = engines(), SimpleQueue[RequestOutput](), Event()
    prompt = prompts(composer)[3]

    def sink(output: RequestOutput) -> None:
        outputs.put(output)
        if outputs.qsize() == 100:
            reached.set()

    engine.submit(Request(prompt, replace(GREEDY, max_tokens=200), CONTEXT, max_backlog=100), sink)
    assert reached.wait(60)
    run_one(engine, composer)
    said = [output.token.token_id for output in (outputs.get() for _ in range(100)) if output.token is not None]
    length = len(prompt.token_ids)
    more = replace(
        prompt, token_ids=prompt.token_ids + said, runs=(*prompt.runs, Run(length, length + 100, None, False))
    )
    assert say(engine, more, 1)[1].num_cached_tokens == (length + 99) // BLOCK_SIZE * BLOCK_SIZE


def test_a_long_prompt_is_prefilled_in_small_chunks_while_others_run(
    glm: Glm, assistant: FusionDecoder, composer: Composer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many tokens as costs allow; in full chunks while nobody waits for a token."""
    monkeypatch.setattr(StepTimes, "prefill_share", lambda times, most: PrefillShare(9, 9))
    core = EngineCore(Runner(glm, assistant.fusion, SLOTS, 48), WIDE, stops=())
    short, long = (prompts(composer)[number] for number in (0, 4))
    core.add(Request(long, replace(GREEDY, max_tokens=1), CONTEXT))
    list(core.step())
    assert core.scheduler.prefilling[0].num_computed_tokens == 48
    core.add(first := Request(short, replace(GREEDY, max_tokens=40), CONTEXT))
    list(core.step())
    assert [sequence.request for sequence in core.scheduler.running] == [first]
    before = core.scheduler.prefilling[0].num_computed_tokens
    outputs = [output for outputs in core.step() for output in outputs]
    assert core.scheduler.prefilling[0].num_computed_tokens == before + 9
    assert [output.request_id for output in outputs] == [first.id]


def test_answers_do_not_depend_on_what_a_step_may_prefill(
    engines: Engines, composer: Composer, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with media in a cached prefix, which are read in pieces."""
    monkeypatch.setattr(StepTimes, "prefill_share", lambda times, most: PrefillShare(9, 9))
    engine = engines()
    assert run_all(engine, composer) == expected
    assert run_all(engine, composer) == expected


def test_a_consumer_that_breaks_harms_only_itself(
    engines: Engines, composer: Composer, expected: list[list[int]]
) -> None:
    def sink(output: RequestOutput) -> None:
        raise ConnectionError("gone")

    engine = engines()
    engine.submit(Request(prompts(composer)[0], GREEDY, CONTEXT), sink)
    assert run_one(engine, composer) == expected[0]
    assert engine.alive()


def test_an_engine_that_cannot_go_on_tells_everyone(
    engines: Engines, composer: Composer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that is gone: neither the pass nor the tidying behind it works. Who runs, waits and comes is told."""
    engine = engines(replace(WIDE, max_num_seqs=1))
    pending = [submit(engine, prompt, replace(GREEDY, max_tokens=300))[1] for prompt in prompts(composer)[:2]]
    pending[0].get(timeout=60)

    def gone(*_: object) -> None:
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(engine.core.runner, "decode", gone)
    monkeypatch.setattr(engine.core.runner.slots, "clear", gone)
    for events in pending:
        assert isinstance(collect(events)[1], UpstreamUnavailable)
    with pytest.raises(UpstreamUnavailable, match="stopped"):
        submit(engine, prompts(composer)[0], GREEDY)
    assert not engine.alive()


def test_who_cannot_be_answered_in_time_is_told_at_once(engines: Engines, composer: Composer) -> None:
    engine, prompt = engines(replace(WIDE, max_num_seqs=1)), prompts(composer)[3]
    for _ in range(3):  # the engine learns how fast it is
        say(engine, prompt, 60)
    queued = [submit(engine, prompt, replace(GREEDY, max_tokens=300)) for _ in range(4)]
    late = Request(prompt, replace(GREEDY, max_tokens=10), CONTEXT)
    with pytest.raises(RateLimited, match="before the deadline") as refused:
        engine.submit(late, lambda output: None, within=1e-4)
    assert (refused.value.retry_after or 0) > 0
    patient = Request(prompt, replace(GREEDY, max_tokens=10), CONTEXT)
    engine.submit(patient, lambda output: None, within=3600)
    for request, _ in queued:
        engine.abort(request.id)


def test_slots_give_their_memory_back(glm: Glm) -> None:
    shape = (2, 4, 4096, 64)
    slots = Slots(1, shape, torch.float32, torch.device("cpu"))
    assert not slots.stores[0].any()
    slots.stores[0][0, :, :3000] = torch.nan
    slots.stores[0][1, :, :10] = 1
    before = resident()
    slots.clear(0, 3000)
    assert before - resident() > 2 * 2**20
    assert not slots.stores[0][0].any()
    assert slots.stores[0][1, :, :10].all()


def test_prefixes_give_way_to_sequences_the_oldest_first() -> None:
    slots = Slots(1, (1, 2, 4 * BLOCK_SIZE, 8), torch.float32, torch.device("cpu"))
    cache: BlockCache[Tensor] = BlockCache(capacity=3)
    for number, key in enumerate((b"a", b"b", b"c")):
        cache.store(key, slots.block(0, number))
    assert len(cache.match([b"a", b"b", b"x"])) == 2  # asked for last: "c" is the oldest now
    cache.reserve(1)
    assert (len(cache.match([b"c"])), len(cache.match([b"a", b"b"]))) == (0, 2)
    cache.reserve(2)
    assert not cache.match([b"a"])
    assert not cache.fits(1)
    assert not cache.accepts(b"d")
    cache.release(1)
    assert cache.accepts(b"d")
