"""Costs and workloads with round numbers."""

from typing import Any

from autoglm.bench.plan.costs import DecoderCost, EncoderCost, GatewayCost, PassCost, StageCosts
from autoglm.bench.plan.workload import Workload

GB = 10**9


def encoder(**fields: Any) -> EncoderCost:
    """An encoder that takes 4 ms and 1 ms a unit, after 2 ms of preprocessing."""
    return EncoderCost.model_validate(
        {
            "hop_s": 0.001,
            "preprocess_s": 0.002,
            "preprocess_threads": 4,
            "forward": {"base_s": 0.004, "token_s": 0.001},
            "max_batch": 8,
            "batch_wait_s": 0.002,
            "tokens_per_unit": 49,
            "embedding_bytes_per_unit": 31_360,
            "memory_bytes": GB,
        }
        | fields
    )


def costs(on_cpu: bool = False, **fields: Any) -> StageCosts:
    """A device with 24 GB, whose decoder takes 10 ms for a step of one sequence."""
    stages = {
        "device": "test",
        "cores": 2 if on_cpu else 1,
        "memory_bytes": 24 * GB,
        "on_cpu": on_cpu,
        "gateway": GatewayCost(
            request_s=0.001, token_s=0.0001, request_cpu_s=0.001, token_cpu_s=0.0001, memory_bytes=GB // 10
        ),
        "vision": encoder(),
        "speech": encoder(piece_units=5, max_batch=4, tokens_per_unit=12.5),
        "decoder": DecoderCost(
            prefill=PassCost(base_s=0.005, token_s=0.0001, context_s=0, weights_s=0),
            decode=PassCost(base_s=0.009, token_s=0.001, context_s=0, weights_s=0),
            max_num_seqs=16,
            max_num_batched_tokens=256,
            max_model_len=1024,
            kv_bytes_per_token=4096,
            memory_bytes=10 * GB,
        ),
    }
    return StageCosts.model_validate(stages | fields)


def workload(**fields: Any) -> Workload:
    """Ten requests a second, half of them with a picture."""
    text = {"name": "text", "share": 1, "prompt_tokens": 100, "output_tokens": 16}
    screen = {"name": "screen", "share": 1, "prompt_tokens": 20, "output_tokens": 16, "images": 1}
    asked = {"request_rate": 10, "classes": [text, screen], "slo": {"ttft_p99_ms": 400, "itl_p99_ms": 80}}
    return Workload.model_validate(asked | fields)
