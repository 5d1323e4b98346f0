"""What was measured: a value of each round, and where and with what."""

import os
import platform
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any, Self

PACKAGES = ("autoglm-mesh", "ray", "torch", "transformers", "tokenizers", "grpcio", "fastapi", "uvicorn", "redis")


@dataclass(frozen=True, slots=True)
class Figure:
    """One value a round, their median, and the least and the most."""

    median: float
    low: float
    high: float
    rounds: Sequence[float]

    @classmethod
    def of(cls, rounds: Sequence[float]) -> Self:
        """Return the figure of these values."""
        values = [round(value, 3) for value in rounds]
        return cls(round(median(values), 3), min(values), max(values), values)

    def __str__(self) -> str:
        return f"{short(self.median)} ({short(self.low)}–{short(self.high)})"


def conditions() -> dict[str, Any]:
    """Return the machine, the versions, the commit and the day."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": _commit(),
        "machine": {
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            "system": f"{platform.system()} {platform.release()}",
        },
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
    }


def short(value: float) -> str:
    """Return a figure with two or three digits that count."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
