"""How many tokens of prompts a step may prefill while running sequences wait for their next token: stall-free batching.

Costs are measured, as they depend on the machine, the model and the length of prompts. Figures: docs/adr/0019.
"""

from dataclasses import dataclass

from autoglm.decoder.engine.scheduler import PrefillShare

NEW = 0.2  # weight of the newest observation
LARGEST = 2.0  # how many times its mean an observation may be: one pause of the machine says little
GROWTH = 1.001  # of the shortest pass, with each step: the machine may have become slower
LEAST = 0.001  # of the shortest pass: what a token costs at least
PREFILL_SECONDS = 0.025  # what a prefill may take at least: tokens still come faster than anyone reads
PREFILL_TIME = 2  # of the shortest pass: the same, where a pass takes longer
FEWEST_TOKENS = 16  # fewer make a pass hardly shorter


@dataclass(slots=True)
class StepTimes:
    """Running means of seconds: `decode` is that of a decode step, `shortest` that of the shortest one lately, and
    `token` that of each token of a prefill beyond what the shortest pass takes anyway. None until they are observed."""

    decode: float | None = None
    shortest: float | None = None
    token: float | None = None

    def decoded(self, seconds: float) -> None:
        """Record a decode step."""
        self.decode = _mean(self.decode, seconds)
        self.shortest = min(self.decode, GROWTH * (self.shortest or self.decode))

    def prefilled(self, tokens: int, passes: int, seconds: float) -> None:
        """Record the prefill of `tokens` tokens in so many passes."""
        if self.shortest is not None:
            beyond = (seconds - passes * self.shortest) / tokens
            self.token = _mean(self.token, max(beyond, LEAST * self.shortest))

    def prefill_share(self, most: int) -> PrefillShare:
        """Return what of prompts, up to `most` tokens, the next step may prefill beside its decode step.

        One pass takes as long as the decode step, so that the others wait twice as long as usual for a token. But it
        takes at least PREFILL_SECONDS, and PREFILL_TIME times as long as the shortest pass, as with less too much of
        the time would be spent on what a pass costs however few tokens it has: reading the weights on a GPU, starting
        operations on a CPU.
        """
        if self.decode is None or self.shortest is None or self.token is None:
            return PrefillShare(most)
        seconds = max(self.decode, PREFILL_TIME * self.shortest, PREFILL_SECONDS) - self.shortest
        tokens = min(most, max(FEWEST_TOKENS, int(seconds / self.token)))
        return PrefillShare(tokens, int(self.shortest / self.token))


def _mean(old: float | None, new: float) -> float:
    return new if old is None else (1 - NEW) * old + NEW * min(new, LARGEST * old)
