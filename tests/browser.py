"""A real browser before the playground, and what can be seen of it: its requests, and what it complains about.

`python -m tests.browser http://localhost:8000` takes the pictures of docs/playground.md, at the mesh that runs there.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, expect, sync_playwright

from .waiting import NET_SECONDS

expect.set_options(timeout=1000 * NET_SECONDS)

ROOT = Path(__file__).resolve().parents[1]
SCREENSHOT = ROOT / "examples/home.png"
SPEECH = ROOT / "examples/instruction.wav"
PICTURES = ROOT / "docs/images"
SIZE = {"width": 1200, "height": 900}
MICROPHONE = (
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    f"--use-file-for-fake-audio-capture={SPEECH}%noloop",
)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless Chromium; what its microphone hears is the example's instruction.

    It runs without its sandbox, which root cannot have; it opens no pages but ours.
    """
    fetched = subprocess.run(["sh", str(ROOT / "tools/chromium.sh")], check=True, stdout=subprocess.PIPE, text=True)
    with sync_playwright() as playwright:
        path = fetched.stdout.strip()
        browser = playwright.chromium.launch(executable_path=path, args=MICROPHONE, chromium_sandbox=False)
        yield browser
        browser.close()


@dataclass
class Visit:
    """A page that is open, with the addresses that it asked for and every complaint of the browser."""

    page: Page
    addresses: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    @classmethod
    def pay(
        cls, browser: Browser, address: str, prepare: Callable[[Page], object] = lambda _: None, **options: Any
    ) -> "Visit":
        """Open the page in a context of its own, with Playwright's `options`, and wait until it knows the models."""
        visit = cls(browser.new_context(**options).new_page())
        prepare(visit.page)
        visit.page.set_default_timeout(1000 * NET_SECONDS)
        visit.page.on("request", lambda request: visit.addresses.append(request.url))
        visit.page.on("console", visit.hear)
        visit.page.on("pageerror", lambda error: visit.complaints.append(str(error)))
        with visit.page.expect_response("**/v1/models"):
            visit.page.goto(address)
        return visit

    def hear(self, message: ConsoleMessage) -> None:
        """Remember what the browser's console says, unless it is said in passing."""
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def forgive(self, expected: str) -> None:
        """Forget the complaints so far; each must begin with what was expected."""
        assert [said for said in self.complaints if not said.startswith(expected)] == []
        self.complaints.clear()

    def show(self, image: Path) -> None:
        """Choose a screenshot."""
        self.page.locator("#image-file").set_input_files(image)

    def speak(self, recording: Path) -> None:
        """Choose a recording."""
        self.page.locator("#speech-file").set_input_files(recording)
        self.page.locator("#attached audio").wait_for()

    def write(self, text: str) -> None:
        """Write a message and send it."""
        self.page.get_by_role("textbox", name="Message").fill(text)
        self.page.keyboard.press("Enter")

    def answer(self) -> Locator:
        """The latest answer, which is whole."""
        answer = self.page.locator(".answer[aria-busy=false]").last
        answer.wait_for()
        return answer


def take_pictures(address: str) -> None:
    """Write the pictures of docs/playground.md."""
    PICTURES.mkdir(exist_ok=True)
    with chromium() as browser:
        visit = Visit.pay(browser, address, viewport=SIZE, reduced_motion="reduce")
        visit.show(SCREENSHOT)
        visit.write("Open Clock")
        visit.answer()
        visit.page.screenshot(path=PICTURES / "playground.png")
        visit = Visit.pay(browser, address, viewport=SIZE, reduced_motion="reduce", locale="zh-CN", color_scheme="dark")
        visit.show(SCREENSHOT)
        visit.speak(SPEECH)
        visit.page.locator("#text").press("Enter")
        visit.answer()
        visit.page.screenshot(path=PICTURES / "playground-zh.png")


if __name__ == "__main__":
    take_pictures(*sys.argv[1:])
