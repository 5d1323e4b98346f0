"""The layout of prompts for models with gated cross-modal attention.

Media come first in each message, images before audio, then text: text and speech can look back at the screen, and no
token ever depends on a later one.
"""

from autoglm.common.modalities import MEDIA_MODALITIES
from autoglm.fusion.layout import Layout, MediaLayout

GCMA_LAYOUT = Layout(
    media=tuple(
        MediaLayout(row.kind, f"<|begin_of_{row.kind}|>", row.placeholder, f"<|end_of_{row.kind}|>", transcribed=True)
        for row in MEDIA_MODALITIES
    )
)
