"""The training loop on a matrix of 8 × 8: rates, interruption, probes, and the precision of an optimizer's step."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from autoglm.training import precision
from autoglm.training.loop import Figures, Loop, LoopConfig, LossAndFigures, Probe

CPU = torch.device("cpu")
CONFIG = LoopConfig("tiny", steps=6, clip=0.5, schedule=lambda step: 1 / (step + 1))


def make(workdir: Path) -> Loop:
    torch.manual_seed(0)
    model = nn.Linear(8, 8, bias=False)
    optimizer = torch.optim.AdamW([{"params": model.parameters(), "lr": 0.1}])
    return Loop(model, [optimizer], CONFIG, workdir)


def learn(loop: Loop, until: int = 6, probe: Probe | None = None) -> list[float]:
    """Interrupt the run when `until` steps are done; return the losses of its steps."""
    losses = list[float]()

    def step(number: int) -> LossAndFigures:
        if number == until:
            raise KeyboardInterrupt
        inputs = torch.randn(4, 8, generator=torch.Generator().manual_seed(number))
        loss: Tensor = (loop.model(inputs) - inputs).square().mean()
        losses.append(loss.item())
        return loss, {"loss": losses[-1]}

    loop.run(step, probe)
    return losses


def test_an_interrupted_run_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    whole, cut = make(tmp_path / "whole"), make(tmp_path / "cut")
    losses = learn(whole)
    with pytest.raises(KeyboardInterrupt):
        learn(cut, until=2)
    resumed = make(tmp_path / "cut")
    assert resumed.step == 2
    assert learn(resumed) == losses[2:]
    assert torch.equal(resumed.model.get_parameter("weight"), whole.model.get_parameter("weight"))
    assert learn(make(tmp_path / "whole")) == []


def test_rates_follow_the_schedule_from_their_peak(tmp_path: Path) -> None:
    loop = make(tmp_path)
    learn(loop)
    assert loop.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 / 6)


def test_a_probe_measures_after_every_so_many_steps(tmp_path: Path) -> None:
    loop, measured = make(tmp_path), list[int]()

    def measure() -> Figures:
        measured.append(loop.step)
        return {"error": 1.0}

    learn(loop, probe=Probe(2, measure))
    assert measured == [2, 4, 6]


@pytest.mark.parametrize("fast", [True, False])
def test_muon_computes_in_the_precision_that_is_fast(monkeypatch: pytest.MonkeyPatch, fast: bool) -> None:
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda: fast)
    torch.manual_seed(0)
    weight = nn.Parameter(torch.zeros(16, 16))
    weight.grad = torch.randn(16, 16)
    optimizer = torch.optim.Muon([weight], lr=1.0, weight_decay=0.0, momentum=0.0, nesterov=False)
    with precision.optimizer_precision(CPU):
        optimizer.step()
    assert torch.equal(weight, weight.bfloat16().float()) is fast
    spread = torch.linalg.svdvals(weight.detach())
    assert 0.3 < spread.min() < spread.max() < 1.5
    with precision.autocast(CPU):
        assert (weight @ weight).dtype == (torch.bfloat16 if fast else torch.float32)
