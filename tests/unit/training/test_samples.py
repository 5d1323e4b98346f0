"""Cases as training sees them: what is learned, where the right cell and the needed medium are."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from autoglm.fusion.compose import Composer
from autoglm.fusion.gcma.model import Enriched
from autoglm.fusion.prompt import PromptMessage
from autoglm.training.data.catalog import LANGUAGES, Language, Split
from autoglm.training.data.screens import draw_screen
from autoglm.training.data.talk import TOPICS
from autoglm.training.data.tasks import Page, Reply
from autoglm.training.data.wording import TEMPLATES, templates
from autoglm.training.eval.answering import Prediction
from autoglm.training.fuse_batch import Additions
from autoglm.training.samples import AGENT_MIXTURE, EVAL_MIXTURE, Case, Sampler, Turn
from autoglm.training.stages.features import NOISE, ClipInfo, FeatureStore
from autoglm.training.stages.joint import attention_loss, cell, gate_loss
from autoglm.training.stages.persona import PERSONA_MIXTURE, TERSE, InCharacter
from autoglm.training.stages.token_batches import TokenBatch, TokenBatches, answers


def test_every_word_of_a_held_out_wording_is_met_in_training(composer: Composer) -> None:
    def tokens(intent: str, language: Language, split: Split) -> set[str]:
        texts = [wording.format("") for wording in templates(intent, language, split)]
        return {token for text in texts for token in composer.tokenizer.encode(text).tokens}

    for intent, by_language in TEMPLATES.items():
        for language in by_language:
            assert tokens(intent, language, "heldout") <= tokens(intent, language, "train"), (intent, language)


@pytest.fixture(scope="module")
def store() -> FeatureStore:
    rng = np.random.default_rng(0)
    screens = [draw_screen("train", rng, "home") for _ in range(20)]
    pages = [Page(screen.kind, screen.app, screen.elements) for screen in screens]
    infos = [ClipInfo(NOISE, "", "en", "", ""), *(ClipInfo("count", "", each, "…", "how many") for each in LANGUAGES)]
    return FeatureStore(
        "train", pages, [torch.randn(49, 320) for _ in pages], infos, [torch.randn(9, 1536) for _ in infos]
    )


def batch_of(composer: Composer, cases: Sequence[Case]) -> TokenBatch:
    class Drawn:
        rng = np.random.default_rng(0)

        def draw(self) -> Case:
            return cases[next(numbers) % len(cases)]

    numbers = iter(range(1_000_000))
    return next(iter(TokenBatches(composer, Drawn(), 1_000_000)))


def steps(store: FeatureStore, dropped: bool) -> Case:
    """Return an agent's session on several screens, of which the older are dropped or not."""
    sampler = Sampler(store, 1, AGENT_MIXTURE)
    while True:
        case = sampler.draw("screen")
        looks = all(turn.reply.look is not None and "image" in turn.needs for turn in case.turns)
        if looks and len(case.turns) == 3 and dropped is not case.turns[0].shown:
            return case


def test_an_answer_about_a_dropped_screenshot_is_not_learned(composer: Composer, store: FeatureStore) -> None:
    for dropped in (True, False):
        case = steps(store, dropped)
        assert len(case.media) == (1 if dropped else 3)
        batch = batch_of(composer, [case])
        past = answers(batch.prompts[0])[0]
        assert bool((batch.labels[0, past] == -100).all()) is dropped


def test_the_attention_is_asked_for_the_cell_of_the_turns_own_picture(composer: Composer, store: FeatureStore) -> None:
    case = steps(store, dropped=False)
    batch = batch_of(composer, [case])
    rows = torch.arange(batch.token_ids.shape[1]).expand(len(batch.cases), -1)
    attention = torch.full((len(rows), 2, rows.shape[1], 3 * 49), 1e-3)
    start = 0
    for turn, answer in zip(case.turns, answers(batch.prompts[0]), strict=True):
        assert turn.reply.look is not None
        attention[:, :, start : answer.start, 49 * turn.image + cell(turn.reply.look)] = 1.0
        start = answer.stop
    right = Additions(rows, Enriched(torch.zeros(()), {}, {"image": attention}))
    assert attention_loss(batch, right).item() == pytest.approx(0, abs=1e-6)
    wrong = Additions(rows, Enriched(torch.zeros(()), {}, {"image": attention.roll(49, -1)}))
    assert attention_loss(batch, wrong).item() == pytest.approx(-np.log(1e-3), rel=0.3)


def test_gates_are_asked_to_open_for_what_a_turn_needs_alone(composer: Composer, store: FeatureStore) -> None:
    sampler = Sampler(store, 2, EVAL_MIXTURE)
    cases = [sampler.draw("text"), sampler.draw("screen")]
    while {media.kind for media in cases[0].media} != {"image"} or "image" not in cases[1].turns[0].needs:
        cases = [sampler.draw("text"), sampler.draw("screen")]
    for case, gate in zip(cases, (0.1, 0.9), strict=True):
        batch = batch_of(composer, [case])
        rows = torch.arange(batch.token_ids.shape[1]).expand(len(batch.cases), -1)
        gates = torch.full(rows.shape, gate)
        gates[:, : int(batch.fusion.media["image"].where.min())] = 0.5  # before the picture nobody asks
        added = Additions(rows, Enriched(torch.zeros(()), {"image": gates}, {}))
        assert gate_loss(batch, added).item() == pytest.approx(-np.log(0.9), rel=1e-4)


def test_a_character_changes_small_talk_and_nothing_else(store: FeatureStore) -> None:
    """In the question and in the turns before it."""
    plain, terse = Sampler(store, 3, PERSONA_MIXTURE), InCharacter(Sampler(store, 3, PERSONA_MIXTURE))
    said = {topic.answer for name in TERSE for topic in TOPICS[name].values()}
    changed = 0
    for _ in range(200):
        one, other = plain.draw(), terse.draw()
        assert [turn.message.role for turn in one.turns] == [turn.message.role for turn in other.turns]
        for before, after in zip(one.turns, other.turns, strict=True):
            assert (before.reply.answer in said) == (before.reply.answer != after.reply.answer)
            changed += before.reply.answer != after.reply.answer
            assert before.reply.thought == after.reply.thought
    assert changed > 40


@pytest.mark.parametrize("mark", ["", "</answer>"])
def test_an_action_is_judged_alike_with_the_mark_that_ends_it_and_without(mark: str) -> None:
    """The decoder stops at the mark; texts of before have it."""
    back = Turn(PromptMessage("user", ("Go back",)), Reply("Go back.", 'do(action="Back")', action=True))
    tap = Reply("Tap it.", 'do(action="Tap", element=[120,340])', (100, 300, 200, 400), action=True)
    for reply, text, right in (
        (back.reply, '<think>Go back.</think><answer>do(action="Back")', True),
        (back.reply, '<think>Go back.</think><answer>do(action="Home")', False),
        (tap, '<think>Tap it.</think><answer>do(action="Tap", element=[110,390])', True),
        (tap, '<think>Tap it.</think><answer>do(action="Tap", element=[210,390])', False),
    ):
        case = Case("back", "text", "en", (Turn(back.message, reply),))
        assert Prediction(case, text + mark, {}).right is right
