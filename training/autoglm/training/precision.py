"""The device that trains fusion and decoder, and the precision that the stages compute in.

Stages multiply matrices in bfloat16. A CPU without AVX-512 or SVE emulates that and takes some 40 times as long as in
float32, so there they compute in float32.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


def device() -> torch.device:
    """Return the GPU (or another accelerator that torch finds), or the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def autocast(where: torch.device | str) -> torch.autocast:
    """Return mixed precision for the passes of a model on `where`."""
    kind = torch.device(where).type
    return torch.autocast(kind, torch.bfloat16, enabled=kind != "cpu" or multiplies_bfloat16())


def optimizer_precision(where: torch.device) -> AbstractContextManager[object]:
    """Return the precision of an optimizer's step on `where`: torch's Muon turns updates into bfloat16 by itself."""
    return _Float32() if where.type == "cpu" and not multiplies_bfloat16() else nullcontext()


def multiplies_bfloat16() -> bool:
    """Return whether this CPU multiplies matrices in bfloat16 at least as fast as in float32."""
    return torch.backends.cpu.get_cpu_capability().startswith(("AVX512", "SVE"))


class _Float32(TorchFunctionMode):
    """Makes `Tensor.bfloat16` return a copy in float32."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        _types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return args[0].clone() if func is torch.Tensor.bfloat16 else func(*args, **(kwargs or {}))
