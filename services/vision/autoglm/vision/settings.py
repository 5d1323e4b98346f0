"""The settings of the vision application in the Serve config."""

from pydantic import Field

from autoglm.common.serve_settings import EncoderSettings


class VisionSettings(EncoderSettings):
    """`args` of the vision application; unknown keys are errors."""

    int8: bool = Field(False, description="Whether the encoder's weights are kept in 8 bits.")
    max_batch: int = Field(8, ge=1, le=64, description="Maximum number of images in a forward pass.")
