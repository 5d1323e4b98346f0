"""Stage `prune`: the student loses the heads, channels and layers that matter least, and is trained on.

What a unit matters is the first-order Taylor estimate of what its loss would cost: |weight · gradient|, summed over
the unit's weights and over some batches of training. What is left is a plain GLM of other sizes.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers.models.glm import GlmConfig, GlmForCausalLM

from autoglm.fusion.gcma.model import GcmaFusion
from autoglm.training.precision import autocast
from autoglm.training.progress import track
from autoglm.training.samples import Sampler
from autoglm.training.stages.distil import DistilConfig, teacher_loss
from autoglm.training.stages.fusion_decoder import DecoderConfig, FusionDecoder, save
from autoglm.training.stages.joint import FULL_MIXTURE, AnswerLoss, RunContext, train
from autoglm.training.stages.teacher import copy_rest
from autoglm.training.stages.token_batches import TokenBatch, TokenBatches


@dataclass(frozen=True, slots=True)
class PruneConfig(DistilConfig):
    """What is left of the decoder, and the run that mends it; recipes/nano.yaml explains each field."""

    layers: int
    heads: int
    channels: int
    weigh_batches: int


@dataclass(frozen=True, slots=True)
class Importance:
    """What each unit matters: `heads` [layers, heads], `channels` [layers, intermediate size], `layers` [layers]."""

    heads: Tensor
    channels: Tensor
    layers: Tensor

    def __add__(self, other: "Importance") -> "Importance":
        return Importance(self.heads + other.heads, self.channels + other.channels, self.layers + other.layers)


def run(decoder: DecoderConfig, config: PruneConfig, workdir: Path) -> None:
    """Prune what distil.pt holds, mend it, and write `workdir`/pruned/fusion and `workdir`/pruned/decoder."""
    context = RunContext.open(workdir)
    student, grade = context.load_checkpoint("distil.pt", decoder), teacher_loss(config.alpha, workdir)
    matters = weigh(student, islice(_batches(context, config), config.weigh_batches), grade)
    pruned = prune(student, matters, config.layers, config.heads, config.channels)
    train("prune", pruned, config, context, grade)
    save(pruned, workdir / "pruned")


def _batches(context: RunContext, config: PruneConfig) -> Iterator[TokenBatch]:
    return iter(TokenBatches(context.composer, Sampler(context.store, config.seed, FULL_MIXTURE), config.batch_tokens))


def weigh(model: FusionDecoder, batches: Iterable[TokenBatch], grade: AnswerLoss) -> Importance:
    """Return what each unit of the decoder matters to `grade` (to attention and gates none does), over `batches`, of
    which there is one at least."""
    total: Importance | None = None
    for batch in track(batches, "weigh", "batch"):
        model.zero_grad(set_to_none=True)
        with autocast("cpu"):
            loss, _ = grade(batch, model(batch)[0])
        loss.backward()
        total = _weights(model.decoder) if total is None else total + _weights(model.decoder)
    model.zero_grad(set_to_none=True)
    assert total is not None
    return total


def _weights(decoder: GlmForCausalLM) -> Importance:
    heads, channels, layers = [], [], []
    n, width = decoder.config.num_attention_heads, decoder.config.hidden_size
    for layer in decoder.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        queries, out = _taylor(attention.q_proj.weight), _taylor(attention.o_proj.weight)
        each = queries.reshape(n, -1).sum(1) + out.reshape(width, n, -1).sum((0, 2))
        if attention.q_proj.bias is not None:
            each += _taylor(attention.q_proj.bias).reshape(n, -1).sum(1)
        heads.append(each)
        gate, up = _taylor(mlp.gate_up_proj.weight).sum(1).chunk(2)
        channels.append(gate + up + _taylor(mlp.down_proj.weight).sum(0))
        layers.append(torch.stack([_taylor(weight).sum() for weight in layer.parameters()]).sum())
    return Importance(torch.stack(heads), torch.stack(channels), torch.stack(layers))


def _taylor(weight: nn.Parameter) -> Tensor:
    """Return |weight · gradient|, element by element."""
    assert weight.grad is not None
    return (weight.detach() * weight.grad).abs()


def prune(model: FusionDecoder, matters: Importance, layers: int, heads: int, channels: int) -> FusionDecoder:
    """Return a model of `layers` layers, each with `heads` query heads and `channels` MLP channels, those of `model`
    that matter most, in their old order; every key/value head keeps as many query heads as the others.

    Raises ValueError for sizes that cannot be.
    """
    old = model.decoder.config
    _check(old, layers, heads, channels)
    sizes = {"num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": channels}
    decoder = GlmForCausalLM(GlmConfig.from_dict(old.to_dict() | sizes))
    pruned = FusionDecoder(GcmaFusion(model.fusion.config), decoder)
    groups = old.num_key_value_heads
    for layer, number in zip(decoder.model.layers, _best(matters.layers, layers).tolist(), strict=True):
        per_group = _best(matters.heads[number].reshape(groups, -1), heads // groups)
        kept = (per_group + torch.arange(groups)[:, None] * (old.num_attention_heads // groups)).flatten()
        rows = (kept[:, None] * old.head_dim + torch.arange(old.head_dim)).flatten()
        source = model.decoder.model.layers[number].state_dict()
        layer.load_state_dict(_smaller(source, rows, _best(matters.channels[number], channels)))
    copy_rest(model, pruned)
    return pruned


def _check(old: GlmConfig, layers: int, heads: int, channels: int) -> None:
    sizes = (("layers", layers, old.num_hidden_layers), ("heads", heads, old.num_attention_heads),
             ("channels", channels, old.intermediate_size))  # fmt: skip
    for name, wanted, there in sizes:
        if not 1 <= wanted <= there:
            raise ValueError(f"{wanted} {name} cannot be left of {there}")
    if heads % old.num_key_value_heads:
        raise ValueError(f"{heads} heads cannot share {old.num_key_value_heads} keys and values evenly")


def _best(weights: Tensor, n: int) -> Tensor:
    """Return the places of the `n` largest along the last dimension, in order."""
    return weights.topk(n).indices.sort().values


def _smaller(layer: dict[str, Tensor], rows: Tensor, channels: Tensor) -> dict[str, Tensor]:
    """Return a layer's weights with only these `rows` of its queries and these `channels` of its MLP."""
    size = layer["mlp.down_proj.weight"].shape[1]
    both = torch.cat([channels, channels + size])  # gates first, then what they gate
    cut = {
        "self_attn.q_proj.weight": layer["self_attn.q_proj.weight"][rows],
        "self_attn.o_proj.weight": layer["self_attn.o_proj.weight"][:, rows],
        "mlp.gate_up_proj.weight": layer["mlp.gate_up_proj.weight"][both],
        "mlp.down_proj.weight": layer["mlp.down_proj.weight"][:, channels],
    }
    if "self_attn.q_proj.bias" in layer:
        cut["self_attn.q_proj.bias"] = layer["self_attn.q_proj.bias"][rows]
    return layer | cut
