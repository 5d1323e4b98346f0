"""Initialisation for models that start from nothing.

Hugging Face's default, normal with 0.02, leaves small MobileViT and GLM models at chance (in MobileViT it
falls on the scales of the batch norms too); these rules make the same tasks learnable within minutes.
"""

import torch
from torch import nn

from autoglm.fusion.gcma.model import GcmaFusion

EMBEDDING_STD = 0.1
POSITION_STD = 0.7
CONTEXT_TAP = 0.1  # the same for every place: at first a query reads the bag of the last words


def initialise(module: nn.Module) -> None:
    """Initialise every layer below `module`: Kaiming on convolutions, xavier on matrices, N(0, 0.1) on embeddings.

    Norms become the identity, biases zero. Bare parameters keep what their own modules gave them.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv1d | nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        elif isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
        elif isinstance(layer, nn.Embedding):
            nn.init.normal_(layer.weight, std=EMBEDDING_STD)
        elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm):
            layer.reset_parameters()
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear) and layer.bias is not None:
            nn.init.zeros_(layer.bias)


@torch.no_grad()
def initialise_places(model: GcmaFusion) -> None:
    """Start what `initialise` leaves of a fusion: positions, modality vectors and the taps of the context."""
    model.context.weight.fill_(CONTEXT_TAP)
    for table in (model.image_row, model.image_column, model.audio_time):
        nn.init.normal_(table.weight, std=POSITION_STD)
    for vector in (model.text_kind, *model.media_kind.values()):
        nn.init.normal_(vector, std=POSITION_STD)
