"""Teacher, student and what is pruned: growth and pruning keep the function, the loss is the formula's, and the stages
go from joint.pt to the comparison."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers.models.glm.modeling_glm import GlmForCausalLM

from autoglm.common.bundle import default_bundle
from autoglm.fusion.gcma.model import GcmaConfig
from autoglm.training import nano
from autoglm.training.eval import evaluate
from autoglm.training.eval.speed import threads
from autoglm.training.samples import Sampler
from autoglm.training.stages import (
    compare,
    distil,
    features,
    fusion_decoder,
    joint,
    prune,
    sweep,
    teacher,
    token_batches,
)
from autoglm.training.stages.features import FeaturesConfig
from autoglm.training.stages.fusion_decoder import DecoderConfig, FusionDecoder
from autoglm.training.stages.joint import RunContext, answer_loss
from autoglm.training.stages.token_batches import TokenBatch, TokenBatches

SMALL = DecoderConfig(hidden=256, layers=2, context=512)
RUN: dict[str, Any] = {
    "screen_steps": 0,
    "batch_tokens": 1024,
    "batch_targets": 256,
    "learning_rate": 1e-3,
    "matrix_rate": 1e-3,
    "attention_weight": 1.0,
    "gate_weight": 0.1,
}
TEACHER = teacher.TeacherConfig(seed=1, steps=2, layers=3, **RUN)
DISTIL = distil.DistilConfig(seed=2, steps=4, alpha=0.5, **RUN)
PRUNE = prune.PruneConfig(seed=3, steps=1, alpha=0.5, layers=1, heads=2, channels=512, weigh_batches=1, **RUN)


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    """Let every model have a fusion of 64 dimensions instead of 512, and draw 24 cases at a time instead of 384."""
    with pytest.MonkeyPatch.context() as patch, threads(1):
        patch.setattr(fusion_decoder, "GcmaConfig", partial(GcmaConfig, width=64, heads=4))
        patch.setattr(token_batches, "POOL", 24)
        yield


@pytest.fixture(scope="module")
def context(small: None, tmp_path_factory: pytest.TempPathFactory) -> RunContext:
    """A working folder as the joint stage leaves it, with a few screens and clips and a model that knows nothing."""
    workdir: Path = tmp_path_factory.mktemp("work")
    for part in ("vision", "speech"):
        shutil.copytree(default_bundle() / part, workdir / part)
    features.run(FeaturesConfig(screens=10, clips=40, seed=0), workdir)
    context = RunContext.open(workdir)
    torch.save({"model": stirred(context).state_dict()}, workdir / "joint.pt")
    teacher.run(SMALL, TEACHER, workdir)
    return context


def stirred(context: RunContext) -> FusionDecoder:
    """Return a model of which every weight counts."""
    model = FusionDecoder.fresh(SMALL, context.composer.vocabulary, seed=4).eval()
    with torch.no_grad():
        for weight in model.decoder.model.layers.parameters():
            weight.add_(torch.randn_like(weight) * 0.05)
    return model


@pytest.fixture(scope="module")
def batch(context: RunContext) -> TokenBatch:
    return next(batches(context))


def batches(context: RunContext) -> Iterator[TokenBatch]:
    return iter(TokenBatches(context.composer, Sampler(context.store, 0), 1024))


@torch.inference_mode()
def logits(model: FusionDecoder, batch: TokenBatch) -> Tensor:
    said: Tensor = model.eval()(batch)[0]
    return said


def test_a_grown_model_says_the_same_to_the_bit(context: RunContext, batch: TokenBatch) -> None:
    model = stirred(context)
    for layers in (2, 5):
        grown = teacher.grow(model, layers)
        assert grown.decoder.config.num_hidden_layers == layers
        assert torch.equal(logits(grown, batch), logits(model, batch))
    with pytest.raises(ValueError, match="of 2 layers does not grow to 1"):
        teacher.grow(model, 1)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.7, 1.0])
def test_the_loss_is_the_formula(alpha: float) -> None:
    generator = np.random.default_rng(0)
    wanted, said = generator.normal(size=(2, 6, 11)) * 3
    right = generator.integers(0, 11, 6)

    def log_softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
        scaled: NDArray[np.float64] = x - np.log(np.exp(x).sum(-1, keepdims=True))
        return scaled

    p, log_p, log_q = np.exp(log_softmax(wanted)), log_softmax(wanted), log_softmax(said)
    literal = alpha * -log_q[np.arange(6), right].mean() + (1 - alpha) * (p * (log_p - log_q)).sum(-1).mean()
    kl = distil.divergence(torch.tensor(wanted), torch.tensor(said))
    loss = distil.mix(cross_entropy(torch.tensor(said), torch.tensor(right)), kl, alpha)
    assert loss.item() == pytest.approx(literal, rel=1e-5)


def test_alone_no_teacher_is_needed(tmp_path: Path) -> None:
    assert distil.teacher_loss(1.0, tmp_path) is answer_loss
    with pytest.raises(SystemExit, match="run --stage teacher first"):
        distil.teacher_loss(0.9, tmp_path)


def test_a_teacher_that_is_the_student_teaches_nothing_more(context: RunContext, batch: TokenBatch) -> None:
    model = stirred(context)
    said = model(batch)[0]
    loss, figures = distil.distillation_loss(model, 0.5)(batch, said)
    assert figures["kl"] == pytest.approx(0, abs=1e-6)
    assert loss.item() == pytest.approx(0.5 * figures["answer"])


def weighed(context: RunContext, model: FusionDecoder, batch: TokenBatch) -> prune.Importance:
    return prune.weigh(model, [batch], answer_loss)


def test_with_nothing_pruned_the_model_says_the_same(context: RunContext, batch: TokenBatch) -> None:
    model = stirred(context)
    whole = prune.prune(model, weighed(context, model, batch), layers=2, heads=4, channels=768)
    assert torch.equal(logits(whole, batch), logits(model, batch))


def test_what_is_zero_goes_first_and_is_not_missed(context: RunContext, batch: TokenBatch, tmp_path: Path) -> None:
    model = teacher.grow(stirred(context), 4)  # layers 1 and 3 add nothing
    zeros = torch.randperm(768, generator=torch.Generator().manual_seed(0))[:256]
    with torch.no_grad():
        for layer in model.decoder.model.layers:
            layer.mlp.gate_up_proj.weight[torch.cat([zeros, zeros + 768])] = 0
            layer.mlp.down_proj.weight[:, zeros] = 0
            for head in (0, 3):  # one of each pair that shares keys and values
                layer.self_attn.q_proj.weight[64 * head : 64 * head + 64] = 0
                layer.self_attn.q_proj.bias[64 * head : 64 * head + 64] = 0
                layer.self_attn.o_proj.weight[:, 64 * head : 64 * head + 64] = 0
    pruned = prune.prune(model, weighed(context, model, batch), layers=2, heads=2, channels=512)
    torch.testing.assert_close(logits(pruned, batch), logits(model, batch), rtol=1e-4, atol=1e-4)
    fusion_decoder.save(pruned, tmp_path)
    plain = GlmForCausalLM.from_pretrained(tmp_path / "decoder", dtype=torch.float32)
    sizes = plain.config.num_hidden_layers, plain.config.num_attention_heads, plain.config.intermediate_size
    assert sizes == (2, 2, 512)
    assert plain.model.layers[1].self_attn.q_proj.weight.shape == (128, 256)
    ours = logits(pruned.to(torch.float32), batch)
    torch.testing.assert_close(logits(FusionDecoder.saved(tmp_path), batch), ours, rtol=0.1, atol=0.1)


@pytest.mark.parametrize(("size", "said"), [
    ({"layers": 3}, "3 layers cannot be left of 2"), ({"channels": 0}, "0 channels cannot be left of 768"),
    ({"heads": 3}, "3 heads cannot share 2 keys and values evenly"),
])  # fmt: skip
def test_sizes_that_cannot_be_left(context: RunContext, batch: TokenBatch, size: dict[str, int], said: str) -> None:
    model = stirred(context)
    with pytest.raises(ValueError, match=said):
        prune.prune(model, weighed(context, model, batch), **{"layers": 2, "heads": 4, "channels": 768} | size)


def test_a_cut_run_ends_as_an_uncut_one(context: RunContext, monkeypatch: pytest.MonkeyPatch) -> None:
    distil.run(SMALL, DISTIL, context.workdir)
    whole = torch.load(context.workdir / "distil.pt")
    (context.workdir / "distil.pt").unlink()
    calls, gate_loss = iter(range(100)), joint.gate_loss

    def cut(batch: TokenBatch, added: object) -> Tensor:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return gate_loss(batch, added)  # type: ignore[arg-type]

    monkeypatch.setattr(joint, "gate_loss", cut)
    with pytest.raises(KeyboardInterrupt):
        distil.run(SMALL, DISTIL, context.workdir)
    assert torch.load(context.workdir / "distil.pt")["step"] == 2
    distil.run(SMALL, DISTIL, context.workdir)
    again = torch.load(context.workdir / "distil.pt")
    assert (again["step"], again["data"]) == (whole["step"], whole["data"])
    for name, weight in whole["model"].items():
        torch.testing.assert_close(again["model"][name], weight, rtol=0, atol=1e-5, msg=name)


def test_batches_are_the_same_from_any_position(context: RunContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_batches, "POOL", 8)
    whole = TokenBatches(context.composer, Sampler(context.store, 5), 512)
    drawn, places = list[Tensor](), [whole.state_dict()]
    for batch in whole:
        drawn.append(batch.token_ids)
        places.append(whole.state_dict())
        if len(drawn) == 12:  # more than a pool
            break
    assert 0 in [place["taken"] for place in places[1:]]
    for start in range(12):
        again = TokenBatches(context.composer, Sampler(context.store, 99), 512)
        again.load_state_dict(places[start])
        assert torch.equal(next(iter(again)).token_ids, drawn[start])


def test_the_stages_end_in_a_comparison(
    context: RunContext, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("autoglm.training.eval.answering.MAX_TOKENS", 2)
    workdir, config = context.workdir, compare.CompareConfig(seed=6, limit=20, rounds=2, prompts=1, threads=1)
    distil.run(SMALL, DISTIL, workdir)
    distil.run_plain(SMALL, replace(DISTIL, steps=1), workdir)
    prune.run(SMALL, PRUNE, workdir)
    compare.run(config, workdir)
    found: compare.ModelComparison = json.loads((workdir / compare.REPORT).read_text(encoding="utf-8"))
    assert list(found["models"]) == [entry.name for entry in compare.ENTRIES]
    assert found["cases"] == 4 * 20 + 10
    sizes = {name: model["decoder_parameters"] for name, model in found["models"].items()}
    assert sizes["pruned student"] < sizes["student"] == sizes["student, INT8"] < sizes["teacher"]
    weights = {name: model["decoder_bytes"] for name, model in found["models"].items()}
    assert weights["student, INT8"] < weights["student"] < weights["teacher"]
    assert found["models"]["teacher"]["faster"]["token"]["rounds"] == [1.0, 1.0]
    assert compare.table(found) in capsys.readouterr().out
    shutil.copy(default_bundle() / evaluate.REPORT, workdir)
    assert compare.table(found) in nano.card(workdir)

    monkeypatch.setattr(compare, "examine", None)  # what has answered is not asked again
    compare.run(config, workdir)


def test_a_sweep_is_a_table_of_what_each_alpha_gives(context: RunContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoglm.training.eval.answering.MAX_TOKENS", 2)
    config = sweep.SweepConfig(seed=6, limit=20, alphas=(0.25,), steps=1)
    sweep.run(SMALL, config, DISTIL, context.workdir)
    lines = (context.workdir / sweep.TABLE).read_text(encoding="utf-8").splitlines()
    assert [line.split(" | ")[0] for line in lines[2:4]] == ["| before", "| 0.25"]
