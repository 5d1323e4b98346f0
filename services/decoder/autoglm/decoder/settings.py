"""Settings of the decoder application in the Serve config."""

from typing import Literal

from pydantic import Field

from autoglm.common.serve_settings import ServiceSettings


class DecoderSettings(ServiceSettings):
    """`args` of the decoder application; unknown keys are errors."""

    engine: Literal["embedded", "vllm"] = Field(
        "embedded", description="What generates: the mesh's own engine, or vLLM, which has to be installed."
    )
    dtype: Literal["", "float32", "bfloat16"] = Field("", description="Empty means bfloat16 on cuda, else float32.")
    int8: bool = Field(False, description="Store and multiply the layers' weights in 8 bits; only on a CPU.")
    max_num_seqs: int = Field(32, ge=1, le=1024, description="Maximum number of requests generated at a time.")
    max_model_len: int = Field(
        0, ge=0, description="Maximum tokens of prompt and answer; 0 means the model's own limit."
    )
    max_num_batched_tokens: int = Field(
        0,
        ge=0,
        description="Maximum prompt tokens per step (chunked prefill); 0 means 256 (GPU: up to 1024).",
    )
    kv_cache_memory_bytes: int = Field(
        0,
        ge=0,
        description="Memory for keys and values, cached prefixes included; 0 means 25 % of free memory (GPU: 90 %).",
    )
    enable_prefix_caching: bool = Field(
        True, description="Compute shared prefixes of prompts only once (prefix cache)."
    )
    max_loras: int = Field(8, ge=1, description="Maximum number of the bundle's adapters in memory at a time.")
    max_ongoing_requests: int = Field(256, ge=1, description="Maximum number of requests in a replica at a time.")
