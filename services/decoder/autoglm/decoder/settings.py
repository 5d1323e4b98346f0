"""What the decoder application can be told in the Serve config."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class DecoderSettings(BaseModel):
    """`args` of the decoder application; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bundle: str = Field("", description="Folder of the bundle; empty means AUTOGLM_BUNDLE, else the packaged one.")
    engine: Literal["embedded", "vllm"] = Field(
        "embedded", description="What generates: the mesh's own engine, or vLLM, which has to be installed beside it."
    )
    device: str = Field("", description="Where to compute, as PyTorch names it; empty means cuda if there, else cpu.")
    dtype: Literal["", "float32", "bfloat16"] = Field("", description="Empty means bfloat16 on cuda, else float32.")
    int8: bool = Field(False, description="Whether the layers' weights are held and multiplied in 8 bits, on a CPU.")
    threads: int = Field(0, ge=0, description="CPU threads of a forward pass; 0 means half of the cores.")
    max_num_seqs: int = Field(32, ge=1, le=1024, description="Most requests generated at a time.")
    max_model_len: int = Field(0, ge=0, description="Most tokens of prompt and answer; 0 means the model's own limit.")
    max_num_batched_tokens: int = Field(
        0,
        ge=0,
        description="Most prompt tokens read between two tokens of running answers; 0 means 256 (GPU: up to 1024).",
    )
    kv_cache_memory_bytes: int = Field(
        0,
        ge=0,
        description="Memory for keys and values, prefixes too; 0 means a quarter of what is free (GPU: nine tenths).",
    )
    enable_prefix_caching: bool = Field(True, description="Whether what many prompts begin with is read only once.")
    max_loras: int = Field(8, ge=1, description="Most adapters of the bundle that are held in memory at a time.")
    max_ongoing_requests: int = Field(256, ge=1, description="Requests that a replica takes at a time.")
    max_queued_requests: int = Field(64, ge=-1, description="Requests that may wait before more are refused.")
    num_cpus: float = Field(0.5, ge=0, description="Share of the node's CPUs that Ray reserves for a replica.")
    num_gpus: float = Field(0, ge=0, description="Share of the node's GPUs that Ray reserves for a replica.")
