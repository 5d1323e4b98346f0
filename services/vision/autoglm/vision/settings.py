"""What the vision application can be told in the Serve config."""

from pydantic import BaseModel, ConfigDict, Field


class VisionSettings(BaseModel):
    """`args` of the vision application; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bundle: str = Field("", description="Folder of the bundle; empty means AUTOGLM_BUNDLE, else the packaged one.")
    device: str = Field("", description="Where to compute, as PyTorch names it; empty means cuda if there, else cpu.")
    int8: bool = Field(False, description="Whether the encoder's weights are held in 8 bits.")
    threads: int = Field(0, ge=0, description="CPU threads of a forward pass; 0 means half of the cores.")
    max_batch: int = Field(8, ge=1, le=64, description="Most images of one forward pass.")
    batch_wait_s: float = Field(0.002, ge=0, le=1, description="Seconds that a batch waits for company.")
    max_ongoing_requests: int = Field(32, ge=1, description="Requests that a replica takes at a time.")
    max_queued_requests: int = Field(64, ge=-1, description="Requests that may wait before more are refused.")
    num_cpus: float = Field(0.5, ge=0, description="Share of the node's CPUs that Ray reserves for a replica.")
    num_gpus: float = Field(0, ge=0, description="Share of the node's GPUs that Ray reserves for a replica.")
