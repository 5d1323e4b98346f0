"""Long commands show how far they are without a terminal too: a line now and then, which a log keeps."""

import io
import threading
from contextlib import redirect_stderr

import pytest

from autoglm.common import progress
from autoglm.training.progress import bar, track

from ...waiting import NET_SECONDS, eventually


class Watched(io.StringIO):
    """A stderr, or a terminal, that tells when it has a line."""

    def __init__(self, terminal: bool = False) -> None:
        super().__init__()
        self.terminal, self.written = terminal, threading.Event()

    def isatty(self) -> bool:
        return self.terminal

    def write(self, text: str) -> int:
        count = super().write(text)
        if text.endswith("\n"):
            self.written.set()
        return count


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.01)


def test_a_loop_says_how_far_it_is() -> None:
    with redirect_stderr(Watched()) as stderr:
        for item in track(["a", "b", "c", "d"], "answers", "case"):
            if item == "c":
                assert stderr.written.wait(NET_SECONDS)
    first = stderr.getvalue().splitlines()[0]
    assert "answers: " in first
    assert " of 4 cases [" in first
    assert "\r" not in stderr.getvalue()


def test_a_bar_shows_its_figures() -> None:
    with redirect_stderr(Watched()) as stderr, bar("distill", 100, "step", 40) as shown:
        shown.set_postfix({"loss": "0.250"}, refresh=False)
        shown.update()
        eventually(lambda: "distill: 41 of 100 steps [" in stderr.getvalue(), "the step is in a line")
        eventually(lambda: "loss=0.250" in stderr.getvalue(), "the figures are")


def test_tasks_say_how_far_they_are_until_they_are_done() -> None:
    with redirect_stderr(Watched()) as stderr, progress.shown_progress() as shown:
        done = shown.add_task("Drawing", total=3)
        eventually(lambda: "Drawing: 0 of 3, " in stderr.getvalue(), "a task is in a line")
        shown.update(done, completed=3)
        shown.add_task("Hashing", total=None)
        eventually(lambda: "Hashing, " in stderr.getvalue(), "the next one is")
    assert "Drawing: 3" not in stderr.getvalue()


def test_a_terminal_gets_a_bar_and_no_lines() -> None:
    with redirect_stderr(Watched(terminal=True)) as stderr:
        list(track(range(3), "answers", "case"))
    assert "answers: 100%" in stderr.getvalue()
    assert " of 3 cases" not in stderr.getvalue()
