"""Measures how many tasks of several steps the agent completes on simulated phones, from text and from speech.

    python examples/phone_tasks.py --tasks 100

Each seed gives a phone and a task of one to three orders, in held-out wordings and voices. A task is complete if every
order ends and the phone is then exactly in the goal state: page, switches and texts.
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from openai import OpenAI
from phone_agent import Agent, Stuck
from simulated_phone import SETTINGS, SimulatedPhone, State

from autoglm.bench.smoke.workloads import wav
from autoglm.training.data.catalog import APPS
from autoglm.training.data.speech import SAMPLE_RATE, Espeak, draw_voice, synthesize
from autoglm.training.data.tasks import Ask
from autoglm.training.data.wording import templates, typed

KINDS = ("switch", "two switches", "open", "write", "there and back")


@dataclass(frozen=True, slots=True)
class Task:
    """Orders to a phone, and how the phone is when they are carried out."""

    kind: str
    asks: tuple[tuple[str, str], ...]  # (intent, what fills its slot)
    goal: State


def draw_task(phone: SimulatedPhone, kind: str, rng: np.random.Generator) -> Task:
    """Draw a task of a kind for a phone as it is now."""
    first, second = (str(app) for app in rng.permutation([app for app in APPS if app != SETTINGS])[:2])
    start = phone.state
    match kind:
        case "switch" | "two switches":
            rows = [each.name for each in phone.page(SETTINGS).elements if each.kind == "switch"]
            chosen = [str(name) for name in rng.permutation(rows)[: 1 if kind == "switch" else 2]]
            asks = [("turn_off" if name in start.on else "turn_on", name) for name in chosen]
            goal = replace(start, page=SETTINGS, on=start.on ^ frozenset(chosen))
        case "open":
            asks, goal = [("open", first)], replace(start, page=first)
        case "write":
            texts = typed(phone.language, "heldout")
            text = texts[rng.integers(len(texts))]
            asks = [("open", first), ("type", text)]
            goal = replace(start, page=first, typed=frozenset({(first, text)}))
        case _:
            asks, goal = [("open", first), ("back", ""), ("open", second)], replace(start, page=second)
    return Task(kind, tuple(asks), goal)


def orders(phone: SimulatedPhone, task: Task, spoken: Path | None, rng: np.random.Generator) -> Sequence[str | Path]:
    """Put a task in words; with a folder `spoken` they are said by one voice, to files there."""
    language, said = phone.language, []
    for intent, filler in task.asks:
        wordings = templates(intent, language, "heldout")
        said.append(wordings[rng.integers(len(wordings))].format(Ask(intent, filler, language).filler))
    if spoken is None:
        return said
    Espeak.fresh()
    voice = draw_voice(language, "heldout", rng)
    files = [spoken / f"{number}.wav" for number, _ in enumerate(said)]
    for file, words in zip(files, said, strict=True):
        file.write_bytes(wav(synthesize(words, language, voice, rng), SAMPLE_RATE))
    return files


def attempt(client: OpenAI, seed: int, spoken: Path | None, kind: type[Agent] = Agent) -> tuple[Task, str]:
    """Return the task of `seed` and why an agent of a kind did not complete it, empty if it did."""
    phone, rng = SimulatedPhone(seed), np.random.default_rng([seed, 1])
    task = draw_task(phone, KINDS[seed % len(KINDS)], rng)
    agent = kind(client, phone, tell=lambda _line: None)
    for order in orders(phone, task, spoken, rng):
        try:
            agent.run(order)
        except Stuck as error:
            return task, str(error)
    return task, "" if phone.state == task.goal else f"ends as {phone.state}, not as {task.goal}"


def main() -> None:
    """Print the share of tasks that are completed, by kind, and what went wrong with the others."""
    parser = argparse.ArgumentParser(description="Measure how many tasks the phone agent completes.")
    parser.add_argument("--url", default="http://localhost:8000/v1", help="the OpenAI API")
    parser.add_argument("--tasks", type=int, default=20, help="seeds 0 to this, text and voice each")
    given = parser.parse_args()
    client = OpenAI(base_url=given.url, api_key="EMPTY")
    with tempfile.TemporaryDirectory() as folder:
        for way, spoken in (("text", None), ("voice", Path(folder))):
            completed = dict.fromkeys(KINDS, 0)
            for seed in range(given.tasks):
                task, wrong = attempt(client, seed, spoken)
                completed[task.kind] += not wrong
                if wrong:
                    print(f"  {way}, seed {seed}, {task.kind}: {wrong}")
            shares = ", ".join(
                f"{kind} {completed[kind]}/{(given.tasks - first + len(KINDS) - 1) // len(KINDS)}"
                for first, kind in enumerate(KINDS)
            )
            print(f"{way}: {sum(completed.values())} of {given.tasks} tasks completed ({shares})", flush=True)


if __name__ == "__main__":
    main()
