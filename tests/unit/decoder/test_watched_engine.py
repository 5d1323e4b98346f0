"""The engine's thread answers the watchdog while it works and while it is idle, and not while it hangs."""

from dataclasses import replace
from queue import SimpleQueue
from threading import Event, get_ident

import pytest
from torch import Tensor

from autoglm.common.watchdog import HUNG_CHECKS, WatchedThread
from autoglm.decoder.engine.sequence import Sequence
from autoglm.fusion.compose import Composer

from ...waiting import NET_SECONDS
from .engines import GREEDY, Engines, answer_of, prompts, submit


def test_the_engine_answers_while_it_is_idle(engines: Engines) -> None:
    engine, callers = engines(), SimpleQueue[int]()
    found = set[int]()
    for _ in range(3):
        engine.call(lambda: callers.put(get_ident()))
        found.add(callers.get(timeout=NET_SECONDS))
    assert len(found - {get_ident()}) == 1


def test_the_engine_answers_between_two_steps(engines: Engines, composer: Composer) -> None:
    engine, answered = engines(), Event()
    _, outputs = submit(engine, prompts(composer)[0], replace(GREEDY, max_tokens=200))
    outputs.get(timeout=NET_SECONDS)
    engine.call(answered.set)
    assert answered.wait(NET_SECONDS)
    answer_of(outputs)


def test_an_engine_whose_pass_never_returns_hangs(
    engines: Engines, composer: Composer, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, inside, over = engines(), Event(), Event()
    watched, answered = WatchedThread(engine.call), Event()
    assert not watched.is_hung()
    engine.call(answered.set)
    assert answered.wait(NET_SECONDS)
    decode = engine.core.runner.decode

    def hang(sequences: list[Sequence], first: int) -> Tensor:
        inside.set()
        over.wait(NET_SECONDS)
        return decode(sequences, first)

    monkeypatch.setattr(engine.core.runner, "decode", hang)
    _, outputs = submit(engine, prompts(composer)[0], replace(GREEDY, max_tokens=2))
    assert inside.wait(NET_SECONDS)
    assert [watched.is_hung() for _ in range(HUNG_CHECKS + 1)][-1]
    over.set()
    answer_of(outputs)
