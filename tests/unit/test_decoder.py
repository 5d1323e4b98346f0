"""The embedded engine against transformers' own generate, and text on its way out."""

from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue

import pytest
import torch
from tokenizers import Tokenizer
from transformers.models.glm.modeling_glm import GlmForCausalLM

from autoglm.decoder.detokenizer import Detokenizer, Reasoning, StopStrings, token_bytes
from autoglm.decoder.engine.cache import SlotCache
from autoglm.decoder.engine.engine import Engine, Stats
from autoglm.decoder.engine.runner import Runner
from autoglm.decoder.engine.sampling import choose
from autoglm.decoder.engine.sequence import Chosen, Finished, Sampling, Sequence
from autoglm.fusion.compose import Composer, Media, Message, Prompt
from autoglm.fusion.fuse import fuse
from autoglm.training import tokenizer
from autoglm.training.joint import Assistant, DecoderConfig, glm_config

SLOTS, CONTEXT = 3, 256
SMALL = DecoderConfig(hidden=128, layers=2, context=CONTEXT)


@pytest.fixture(scope="module")
def composer(tmp_path_factory: pytest.TempPathFactory) -> Composer:
    folder = tmp_path_factory.mktemp("decoder")
    tokenizer.build(folder)
    return Composer(folder)


@pytest.fixture(scope="module")
def assistant(composer: Composer) -> Assistant:
    return Assistant.fresh(SMALL, composer.tokenizer.get_vocab_size(), seed=4).eval()


@pytest.fixture(scope="module")
def runner(assistant: Assistant) -> Runner:
    every = assistant.decoder.config.vocab_size  # transformers' generate forbids nothing either
    return Runner(assistant.decoder, assistant.fusion, SLOTS, CONTEXT, every, never=())


@pytest.fixture
def engine(runner: Runner) -> Iterator[Engine]:
    engine = Engine(runner, SLOTS, stops=())
    yield engine
    engine.close()


def prompts(composer: Composer) -> list[Prompt]:
    torch.manual_seed(0)
    image, audio = Media("image", torch.randn(49, 320)), Media("audio", torch.randn(17, 1536))
    parts: list[tuple[str | Media, ...]] = [
        ("Hello",),
        (image, "Where is Camera?"),
        (audio,),
        ("你好" * 9,),
        (image, audio),
    ]
    return [composer.compose([Message("user", part)]) for part in parts]


def submit(engine: Engine, prompt: Prompt, sampling: Sampling) -> tuple[Sequence, "SimpleQueue[Chosen | Finished]"]:
    events: SimpleQueue[Chosen | Finished] = SimpleQueue()
    sequence = Sequence.start(prompt, sampling, CONTEXT - len(prompt.token_ids), events.put)
    engine.submit(sequence)
    return sequence, events


def collect(events: "SimpleQueue[Chosen | Finished]") -> tuple[list[int], Finished]:
    tokens = []
    while isinstance(event := events.get(timeout=60), Chosen):
        tokens.append(event.token_id)
    return tokens, event


def theirs(assistant: Assistant, prompt: Prompt, n: int) -> list[int]:
    """Return transformers' own greedy continuation of the fused prompt."""
    decoder: GlmForCausalLM = assistant.decoder
    fused = fuse(assistant.fusion, decoder.model.embed_tokens, prompt).embeddings[None]
    mask = torch.ones(fused.shape[:2], dtype=torch.long)
    out = decoder.generate(
        inputs_embeds=fused, attention_mask=mask, max_new_tokens=n, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    return [int(token) for token in out[0]]


def test_equals_transformers_token_for_token(engine: Engine, assistant: Assistant, composer: Composer) -> None:
    """Five prompts over three slots, with and without media, finishing at different times."""
    lengths = (24, 5, 17, 9, 30)
    pending = [
        submit(engine, prompt, Sampling(temperature=0, max_tokens=n))[1]
        for prompt, n in zip(prompts(composer), lengths, strict=True)
    ]
    for events, prompt, n in zip(pending, prompts(composer), lengths, strict=True):
        tokens, end = collect(events)
        assert tokens == theirs(assistant, prompt, n)
        assert end.reason == "length"


def test_a_fresh_cache_holds_no_garbage() -> None:
    """What stands behind a short sequence in a batch is masked, but a masked NaN is a NaN all the same."""
    shape, dtypes = (SLOTS, 2, CONTEXT, 64), (torch.float32, torch.bfloat16)
    for dtype in dtypes:
        left = [torch.full(shape, torch.nan, dtype=dtype) for _ in range(8)]
        del left
        cache = SlotCache(4, shape, dtype, torch.device("cpu"))
        assert all(store.dtype == dtype and not store.any() for store in (*cache.keys, *cache.values))


def test_a_seed_gives_one_answer_whatever_runs_beside(engine: Engine, composer: Composer) -> None:
    prompt, sampling = prompts(composer)[1], Sampling(temperature=1.2, top_p=0.9, top_k=50, seed=7, max_tokens=20)
    alone, _ = collect(submit(engine, prompt, sampling)[1])
    others = [submit(engine, other, Sampling(max_tokens=30))[1] for other in prompts(composer)[:2]]
    beside, _ = collect(submit(engine, prompt, sampling)[1])
    for events in others:
        collect(events)
    assert alone == beside


def test_an_abort_frees_its_slot_and_disturbs_nobody(engine: Engine, assistant: Assistant, composer: Composer) -> None:
    first, second = prompts(composer)[:2]
    victim, victims = submit(engine, first, Sampling(temperature=0, max_tokens=200))
    _, events = submit(engine, second, Sampling(temperature=0, max_tokens=40))
    victims.get(timeout=60)
    engine.abort(victim)
    assert collect(events)[0] == theirs(assistant, second, 40)
    assert engine.stats() == Stats(0, 0)


def test_one_failing_sequence_fails_alone(engine: Engine, assistant: Assistant, composer: Composer) -> None:
    good, bad = prompts(composer)[0], composer.compose([Message("user", (Media("image", torch.zeros(49, 3)),))])
    _, broken = submit(engine, bad, Sampling(max_tokens=4))
    _, events = submit(engine, good, Sampling(temperature=0, max_tokens=12))
    assert isinstance(collect(broken)[1].reason, RuntimeError)
    assert collect(events)[0] == theirs(assistant, good, 12)
    assert engine.alive()


def chosen(logits: list[float], sampling: Sampling, output: list[int]) -> Chosen:
    prompt = Prompt([0], (), "")
    sequence = Sequence.start(prompt, sampling, 10, lambda event: None)
    choose(torch.tensor(logits), sequence)
    if sequence.counts is not None:
        for token in output:
            sequence.counts[token] += 1
    return choose(torch.tensor(logits), sequence)


def test_penalties_move_the_choice() -> None:
    logits = [0.0, 3.0, 2.5, 2.4]
    assert chosen(logits, Sampling(temperature=0), []).token_id == 1
    assert chosen(logits, Sampling(temperature=0, presence_penalty=1.0), [1]).token_id == 2
    assert chosen(logits, Sampling(temperature=0, frequency_penalty=0.4), [1, 1, 2]).token_id == 3
    assert chosen(logits, Sampling(temperature=0, repetition_penalty=1.5), [1]).token_id == 2


def test_top_k_and_top_p_keep_the_likeliest() -> None:
    logits = [0.0, 3.0, 2.9, -1.0]
    assert {chosen(logits, Sampling(top_k=2, seed=seed), []).token_id for seed in range(40)} == {1, 2}
    assert {chosen(logits, Sampling(top_p=0.3, seed=seed), []).token_id for seed in range(40)} == {1}


def test_logprobs_are_the_models() -> None:
    event = chosen([0.0, 3.0, 2.0], Sampling(temperature=0, top_logprobs=2), [])
    expected = torch.tensor([0.0, 3.0, 2.0]).log_softmax(-1)
    assert event.logprob == pytest.approx(expected[1].item())
    assert [token for token, _ in event.top] == [1, 2]


def spell(tokenizer_: Tokenizer, text: str) -> list[int]:
    return list(tokenizer_.encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize("text", ["打开相机", "👩‍🚀 flies 🚀", "naïve café — 😀😀", "Open Camera now", "龘靐"])
def test_text_comes_whole_and_never_in_broken_characters(composer: Composer, text: str) -> None:
    detokenizer = Detokenizer(composer.tokenizer)
    pieces = [detokenizer.feed(token) for token in spell(composer.tokenizer, text)]
    assert "".join(pieces) + detokenizer.flush() == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_token_bytes_spell_the_text(composer: Composer) -> None:
    text = "相机 naïve 😀"
    assert (
        b"".join(token_bytes(composer.tokenizer, token) for token in spell(composer.tokenizer, text)) == text.encode()
    )


def test_stop_strings_are_never_sent_even_in_pieces() -> None:
    stops = StopStrings(("STOP", "end"))
    assert [stops.feed(piece) for piece in ("a S", "T", "x e", "n", "d b")] == [
        ("a ", False), ("", False), ("STx ", False), ("", False), ("", True),
    ]  # fmt: skip


def test_stop_strings_give_back_what_waited_in_vain() -> None:
    stops = StopStrings(("STOP",))
    assert stops.feed("a ST") == ("a ", False)
    assert stops.flush() == "ST"


@pytest.mark.parametrize(
    ("pieces", "text", "reasoning"),
    [
        (["<think>", "why", "</think>", "so"], "so", "why"),
        (["<thi", "nk>wh", "y</th", "ink>so"], "so", "why"),
        (["no ", "<think>tags</think>"], "no <think>tags</think>", ""),
        (["<think>cut o", "ff"], "", "cut off"),
        (["<thin"], "<thin", ""),
    ],
)
def test_reasoning_comes_apart(pieces: list[str], text: str, reasoning: str) -> None:
    splitter = Reasoning()
    parts = [splitter.feed(piece) for piece in pieces] + [splitter.flush()]
    assert ("".join(part[0] for part in parts), "".join(part[1] for part in parts)) == (text, reasoning)


def test_glm_config_is_saved_and_read_by_transformers(assistant: Assistant, composer: Composer, tmp_path: Path) -> None:
    assistant.decoder.save_pretrained(tmp_path)
    loaded = GlmForCausalLM.from_pretrained(tmp_path)
    expected = glm_config(SMALL, composer.tokenizer.get_vocab_size())
    assert loaded.config.num_key_value_heads == expected.num_key_value_heads
    assert torch.equal(loaded.lm_head.weight, assistant.decoder.lm_head.weight)
