"""Weights in 8 bits, for services with the setting `int8`. ADR 3 has the speed and the loss of accuracy."""

import torch
from torch import Tensor, nn


class Int8Linear(nn.Module):
    """A linear layer with 8-bit weights, one scale per output row, and activations quantized per token."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, scale = _quantize_rows(linear.weight.detach())
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` [..., inputs] times the weights, [..., outputs], in float32."""
        rows, row_scale = _quantize_rows(x.reshape(-1, x.shape[-1]))
        sums = torch._int_mm(rows, self.weight.t())
        y = (sums * row_scale[:, None] * self.scale).reshape(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias


class Int8Conv2d(nn.Module):
    """A convolution with 8-bit weights, one scale per output channel, that computes in floating point."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        weight, scale = _quantize_rows(conv.weight.detach().flatten(1))
        self.register_buffer("weight", weight.reshape(conv.weight.shape))
        self.register_buffer("scale", scale[:, None, None, None])
        self.register_buffer("bias", None if conv.bias is None else conv.bias.detach().clone())
        self.stride, self.padding = conv.stride, conv.padding
        self.dilation, self.groups = conv.dilation, conv.groups

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of `x` [B, inputs, H, W], [B, outputs, H', W']."""
        weight = self.weight * self.scale
        padding = self.padding
        return nn.functional.conv2d(x, weight, self.bias, self.stride, padding, self.dilation, self.groups)


def _quantize_rows(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the int8 values [N, K] of `matrix` [N, K] and the float scale [N] of each row, symmetric around zero."""
    scale = matrix.abs().amax(dim=1).clamp_min(1e-8) / 127
    return (matrix / scale[:, None]).round().to(torch.int8), scale


def quantize_int8(module: nn.Module) -> None:
    """Replace every linear layer and convolution in `module` with its 8-bit form, in place."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, Int8Linear(child))
        elif isinstance(child, nn.Conv2d):
            setattr(module, name, Int8Conv2d(child))
        else:
            quantize_int8(child)
