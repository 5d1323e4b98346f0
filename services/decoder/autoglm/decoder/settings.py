"""What the decoder application can be told in the Serve config."""

from typing import Literal

from pydantic import Field

from autoglm.common.serve_settings import ServiceSettings


class DecoderSettings(ServiceSettings):
    """`args` of the decoder application; unknown keys are errors."""

    engine: Literal["embedded", "vllm"] = Field(
        "embedded", description="What generates: the mesh's own engine, or vLLM, which has to be installed beside it."
    )
    dtype: Literal["", "float32", "bfloat16"] = Field("", description="Empty means bfloat16 on cuda, else float32.")
    int8: bool = Field(False, description="Whether the layers' weights are held and multiplied in 8 bits, on a CPU.")
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
    max_ongoing_requests: int = Field(256, ge=1, description="Maximum number of requests in a replica at a time.")
