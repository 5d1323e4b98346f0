"""The settings of the speech application in the Serve config."""

from pydantic import Field

from autoglm.common.serve_settings import EncoderSettings


class SpeechSettings(EncoderSettings):
    """`args` of the speech application; unknown keys are errors."""

    max_batch: int = Field(4, ge=1, le=64, description="Maximum number of recordings in a forward pass.")
    max_audio_seconds: int = Field(
        600, ge=1, le=7200, description="Maximum length of a recording in seconds; a longer one is refused."
    )
