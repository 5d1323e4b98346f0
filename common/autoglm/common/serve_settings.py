"""Settings that the applications of the Serve config have in common. Nothing here needs torch or Ray."""

from pydantic import BaseModel, ConfigDict, Field


class ServiceSettings(BaseModel):
    """`args` that every application takes; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bundle: str = Field("", description="Bundle folder. Empty: `AUTOGLM_BUNDLE`, or the packaged bundle.")
    device: str = Field("", description="PyTorch device to compute on. Empty: cuda if available, else cpu.")
    threads: int = Field(0, ge=0, description="CPU threads of a forward pass. 0: half of the cores.")
    max_ongoing_requests: int = Field(32, ge=1, description="Maximum number of requests in a replica at a time.")
    max_queued_requests: int = Field(
        64, ge=-1, description="Maximum number of requests that wait for a replica; more are refused. -1: no limit."
    )
    num_cpus: float = Field(0.5, ge=0, description="CPUs that Ray reserves for a replica; fractions are allowed.")
    num_gpus: float = Field(0, ge=0, description="GPUs that Ray reserves for a replica; fractions are allowed.")


class EncoderSettings(ServiceSettings):
    """`args` that both encoders take."""

    max_batch: int = Field(8, ge=1, le=64, description="Maximum number of items in a forward pass.")
    batch_wait_s: float = Field(
        0.002, ge=0, le=1, description="Seconds that an incomplete batch waits for more requests."
    )
