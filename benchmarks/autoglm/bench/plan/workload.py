"""The workload file: what is asked, how often, and how soon answers have to come.

The names are those that load generators for such servers use: `request_rate` and `burstiness` are vLLM's
(`vllm bench serve`), `prompt_tokens`, `output_tokens`, `prefix_tokens` and `…_stdev` GuideLLM's, `ttft` and `itl` those
of Dynamo's planner.
"""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from autoglm.bench.plan.schema import PlanSchema, read_mapping, validated


class RequestClass(PlanSchema):
    """Requests of one kind."""

    name: str = Field(min_length=1, description="What the report calls them.")
    share: float = Field(gt=0, description="Share of the request rate, relative to the other classes.")
    prompt_tokens: int = Field(ge=1, description="Mean tokens of text in a prompt, without those of media.")
    prompt_tokens_stdev: float = Field(default=0, ge=0, description="Their standard deviation.")
    output_tokens: int = Field(ge=1, description="Mean tokens of an answer.")
    output_tokens_stdev: float = Field(default=0, ge=0, description="Their standard deviation.")
    prefix_tokens: int = Field(
        default=0,
        ge=0,
        description="How many of the prompt's tokens all requests of the class share, as a system prompt.",
    )
    images: int = Field(default=0, ge=0, le=64, description="Pictures in a request.")
    audio_seconds: float = Field(
        default=0, ge=0, le=7200, description="Mean seconds of the recording in a request; 0: none."
    )
    audio_seconds_stdev: float = Field(default=0, ge=0, description="Their standard deviation.")

    @model_validator(mode="after")
    def _prefix_fits(self) -> Self:
        if self.prefix_tokens > self.prompt_tokens:
            raise ValueError("prefix_tokens must not be more than prompt_tokens")
        return self


class Slo(PlanSchema):
    """What has to be met."""

    ttft_p99_ms: float = Field(gt=0, description="99th percentile of the time to the first token, in milliseconds.")
    itl_p99_ms: float = Field(gt=0, description="99th percentile of the time between two tokens, in milliseconds.")
    availability: float = Field(
        default=0.99,
        gt=0,
        lt=1,
        description="Share of the time in which enough replicas of every service run for that.",
    )
    replica_availability: float = Field(
        default=0.995, gt=0, lt=1, description="Share of the time in which one replica runs."
    )


class CacheTarget(PlanSchema):
    """What the embedding cache should hold. Media are popular by Zipf's law: that of rank i is asked for i^-exponent
    times as often as the first."""

    hit_ratio: float = Field(
        default=0, ge=0, lt=1, description="Share of media that the cache should answer; 0: no cache."
    )
    distinct_images: int = Field(
        default=10_000, ge=1, le=10_000_000, description="Different pictures within the cache's TTL."
    )
    distinct_recordings: int = Field(
        default=10_000,
        ge=1,
        le=10_000_000,
        description="Different recordings likewise.",
    )
    zipf_exponent: float = Field(default=1.0, ge=0, le=3, description="0: all are equally popular.")


class Workload(PlanSchema):
    """A workload file."""

    request_rate: float = Field(gt=0, le=1_000_000, description="Requests per second.")
    burstiness: float = Field(
        default=1.0, gt=0, le=100, description="Shape of the gamma law of arrivals: 1 is Poisson, less is burstier."
    )
    classes: tuple[RequestClass, ...] = Field(min_length=1, description="The kinds of requests.")
    slo: Slo
    cache: CacheTarget = CacheTarget()

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [each.name for each in self.classes]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"classes: two have the name {twice[0]!r}")
        return self

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a workload file; raises PlanError that names the field."""
        return validated(cls, read_mapping(path), str(path))

    @property
    def rates(self) -> tuple[float, ...]:
        """Return the requests per second of each class."""
        total = sum(each.share for each in self.classes)
        return tuple(self.request_rate * each.share / total for each in self.classes)

    @property
    def image_rate(self) -> float:
        """Return the pictures per second that reach an encoder, those that the cache answers left out."""
        missed = 1 - self.cache.hit_ratio
        return missed * sum(rate * each.images for rate, each in zip(self.rates, self.classes, strict=True))

    @property
    def audio_rate(self) -> float:
        """Return the seconds of sound per second that reach an encoder, those that the cache answers left out."""
        missed = 1 - self.cache.hit_ratio
        return missed * sum(rate * each.audio_seconds for rate, each in zip(self.rates, self.classes, strict=True))
