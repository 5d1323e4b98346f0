"""What came of the cases: an outcome each, counted by kind."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from google.rpc import error_details_pb2, status_pb2

from autoglm.common.errors import BY_REASON

# An answer, a typed error by its HTTP status (over gRPC, that of its type), a call that the client left, or a fault.
Answered = Literal["OK", "400", "401", "403", "404", "405", "408", "413", "415", "429", "431", "503", "504", "left"]
Fault = Literal["death", "hang", "internal", "untyped"]
Outcome = Answered | Fault
ANSWERED: Sequence[Answered] = get_args(Answered)
FAULTS: Sequence[Fault] = get_args(Fault)


@dataclass(frozen=True, slots=True)
class Result:
    """How a case ended. `said` is what shows a fault; `seconds` is until the end of the answer."""

    outcome: Outcome
    said: str = ""
    seconds: float = 0.0


@dataclass(slots=True)
class Tally:
    """How often each kind of case ended how. `faults` has a line for each fault, `slowest` the seconds and the number
    of the slowest case of each kind."""

    seed: int
    counts: defaultdict[str, Counter[Outcome]] = field(default_factory=lambda: defaultdict(Counter))
    faults: list[str] = field(default_factory=list)
    slowest: dict[str, tuple[float, int]] = field(default_factory=dict)

    def add(self, kind: str, number: int, result: Result) -> None:
        """Count a case."""
        self.counts[kind][result.outcome] += 1
        self.slowest[kind] = max(self.slowest.get(kind, (0.0, 0)), (result.seconds, number))
        if result.outcome in FAULTS:
            self.faults.append(f"{kind} {number} of seed {self.seed}: {result.outcome}: {result.said}")

    @property
    def sent(self) -> int:
        """How many cases there were."""
        return sum(counted.total() for counted in self.counts.values())

    def total(self, *outcomes: Outcome) -> int:
        """Return how many cases ended so."""
        return sum(counted[outcome] for counted in self.counts.values() for outcome in outcomes)

    def table(self) -> str:
        """Return the counts as a table in Markdown. Without columns for statuses that never came."""
        columns = [*(each for each in ANSWERED if each in ("OK", "503") or self.total(each)), *FAULTS]
        lines = [f"| Cases | sent | {' | '.join(columns)} |", "|---|" + "--:|" * (len(columns) + 1)]
        for kind, counted in sorted(self.counts.items()):
            cells = " | ".join(str(counted[column]) for column in columns)
            lines.append(f"| {kind} | {counted.total()} | {cells} |")
        return "\n".join(lines) + "\n"


def of_type(reason: str, said: str, seconds: float = 0.0) -> Result:
    """Return the result of an error whose type, in any case, is `reason`."""
    known = BY_REASON.get(reason.upper())
    if known is None:
        return Result("untyped", f"{reason!r}: {said}", seconds)
    return of_http(known.http_status, said, seconds)


def of_status(status: status_pb2.Status | None, said: str, seconds: float = 0.0) -> Result:
    """Return the result of a call that ended with a google.rpc.Status, None where the details are missing."""
    info = error_details_pb2.ErrorInfo()
    if status is None or not any(detail.Unpack(info) for detail in status.details):
        return Result("untyped", said, seconds)
    return of_type(info.reason, said, seconds)


def of_http(status: int, said: str = "", seconds: float = 0.0) -> Result:
    """Return the result of an HTTP answer whose body says what it has to."""
    if status < 400:
        return Result("OK", "", seconds)
    found = next((each for each in ANSWERED if each == str(status)), None)
    return Result(found or ("internal" if status == 500 else "untyped"), said, seconds)
