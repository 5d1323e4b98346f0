"""What surrounds the CUDA graphs, without a GPU: shapes, leftovers, and rope positions are as without graphs."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers.models.glm import GlmConfig
from transformers.models.glm.modeling_glm import GlmForCausalLM

from autoglm.decoder.engine.core import EngineCore
from autoglm.decoder.engine.graphs import Graphs, GraphSizes
from autoglm.decoder.engine.models.glm import Glm
from autoglm.decoder.engine.request import Request, SamplingConfig
from autoglm.decoder.engine.runner import Runner
from autoglm.decoder.engine.scheduler import EngineLimits
from autoglm.fusion.prompt import Media, Prompt, Run
from autoglm.fusion.splice import SpliceConfig, SpliceFusion

WIDTH, CONTEXT = 64, 256
LIMITS = EngineLimits(3, 48, 12)
ROPE = {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5}


class OnCpu(TorchFunctionMode):
    """Makes tensors on the CPU that are asked for on a GPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return func(*args, **kwargs | ({"device": "cpu"} if kwargs.get("device") == "cuda" else {}))


def record(self: Graphs, compute: Callable[[], Tensor]) -> tuple[Any, Tensor]:
    """Stand in for a recording: a replay computes again, into the same tensor."""
    logits = compute().clone()
    return SimpleNamespace(replay=lambda: logits.copy_(compute())), logits


def glm(**rope: object) -> Glm:
    torch.manual_seed(0)
    model = GlmForCausalLM(
        GlmConfig(
            vocab_size=128, hidden_size=WIDTH, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=32, pad_token_id=0, attention_bias=True, rope_parameters=ROPE | rope,
        )
    ).eval()  # fmt: skip
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.xavier_uniform_(weight, gain=2.0)
    torch.nn.init.normal_(model.model.embed_tokens.weight)
    return Glm(model, CONTEXT)


def prompt(length: int) -> Prompt:
    """Return a picture of 3 × 4 tokens between two texts."""
    draw = torch.Generator().manual_seed(length)
    screen = Media("image", torch.randn(12, WIDTH, generator=draw), grid=(3, 4))
    end = length + 12
    runs = (Run(0, length), Run(length, end, screen), Run(end, end + length))
    return Prompt(torch.randint(1, 128, (end + length,), generator=draw).tolist(), runs, "")


def answers(runner: Runner) -> list[list[int]]:
    core, said = EngineCore(runner, LIMITS, stops=()), dict[int, list[int]]()
    for length in (5, 30, 70, 20, 60):
        request = Request(prompt(length), SamplingConfig(temperature=0, max_tokens=10), CONTEXT)
        said[request.id] = []
        core.add(request)
    while core.scheduler.has_work:
        for outputs in core.step():
            for output in outputs:
                assert not isinstance(output.finish, Exception)
                said[output.request_id] += [output.token.token_id] if output.token else []
    return list(said.values())


@pytest.mark.parametrize("rope", [{}, {"mrope_section": [2, 3, 3]}])
def test_graphs_say_what_the_passes_say(rope: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    """With one row of rope positions and with three."""
    model = glm(**rope)
    fusion = SpliceFusion(SpliceConfig(WIDTH, {"image": WIDTH}, 3 if rope else 1))
    runner = Runner(model, fusion, LIMITS.max_num_seqs, LIMITS.max_num_batched_tokens)
    wanted = answers(runner)
    assert len({token for answer in wanted for token in answer}) > 20
    for name in ("Stream", "graph_pool_handle"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(Graphs, "_record", record)
    sizes = GraphSizes(LIMITS.max_num_seqs, LIMITS.max_num_batched_tokens, CONTEXT, WIDTH, model.position_rows)
    with OnCpu():
        graphs = Graphs(runner.decode_step, runner.prefill_chunk, sizes, torch.float32)
    monkeypatch.setattr(runner, "_graphs", graphs)
    assert answers(runner) == wanted
