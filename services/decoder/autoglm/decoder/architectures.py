"""The architectures that this release can run, one row each: what `architecture` in bundle.json names.

Another architecture is another row. The command line reads this table before anything is started, so what needs torch
is only imported when a bundle is loaded. docs/extending.md says how to add one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autoglm.common.bundle import Bundle, BundleError
from autoglm.fusion.gcma.layout import GCMA_LAYOUT
from autoglm.fusion.layout import Layout

if TYPE_CHECKING:
    import torch

    from autoglm.decoder.engine.models.glm import Glm
    from autoglm.fusion.protocol import Fusion


@dataclass(frozen=True, slots=True)
class Architecture:
    """How to load and prompt the models of one architecture.

    `layout` is how media and marks (reasoning, function calls) are written. `load_fusion` opens the folder of the
    fusion part in a dtype on a device. `load_decoder` opens that of the decoder part, for so many tokens of context,
    and with its matrices in 8 bits if the last argument says so.
    """

    layout: Layout
    load_fusion: "Callable[[Path, torch.dtype, torch.device], Fusion]"
    load_decoder: "Callable[[Path, torch.dtype, torch.device, int, bool], Glm]"


def architecture_of(bundle: Bundle) -> Architecture:
    """Return the architecture of a bundle; raises BundleError, which lists the known ones, if it is unknown."""
    if found := ARCHITECTURES.get(bundle.architecture):
        return found
    known = ", ".join(sorted(ARCHITECTURES))
    raise BundleError(f"bundle {bundle.name} has architecture {bundle.architecture!r}; this release knows: {known}")


def _load_gcma(folder: Path, dtype: "torch.dtype", device: "torch.device") -> "Fusion":
    from autoglm.fusion.gcma.model import GcmaFusion

    return GcmaFusion.from_pretrained(folder, dtype).to(device)


def _load_glm(folder: Path, dtype: "torch.dtype", device: "torch.device", context: int, int8: bool) -> "Glm":
    from autoglm.decoder.engine.models.glm import Glm

    return Glm.from_pretrained(folder, dtype, device, context, int8)


ARCHITECTURES = {"gcma": Architecture(GCMA_LAYOUT, _load_gcma, _load_glm)}
