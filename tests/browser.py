"""A real browser on the playground, and what can be seen of it: its requests, and what it complains about."""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, Request, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / "examples/home.png"
SPEECH = ROOT / "examples/instruction.wav"
MICROPHONE = (
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    f"--use-file-for-fake-audio-capture={SPEECH}%noloop",
)


@contextmanager
def chromium(*arguments: str) -> Iterator[Browser]:
    """A headless Chromium whose microphone hears the example's instruction."""
    fetched = subprocess.run(["sh", str(ROOT / "tools/chromium.sh")], check=True, stdout=subprocess.PIPE, text=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=fetched.stdout.strip(), args=[*MICROPHONE, "--no-sandbox", *arguments]
        )
        yield browser
        browser.close()


@dataclass
class Visit:
    """A page that is open, with every request that it made and every complaint of the browser."""

    page: Page
    requests: list[Request] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("request", self.requests.append)
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)
