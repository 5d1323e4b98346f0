"""The playground as a person uses it: a real Chromium, a microphone that hears a file, the real mesh."""

import base64
import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import soundfile
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Route, expect

from autoglm.cli.api import audio_bytes_part, image_bytes_part
from autoglm.common.recordings import container

from ..asking import CHAT, MODEL, Asker, tap
from ..browser import SCREENSHOT, SPEECH, Visit, chromium
from ..gateway import running_gateway
from ..mesh import Mesh
from ..waiting import eventually

Open = Callable[..., Visit]
Gateway = Callable[..., str]
REFUSED = "Failed to load resource"  # what the console says of every answer that is an error
# Gives the page a file as the clipboard and a pointer do.
GIVE = """([type, name, data]) => {
    const files = new DataTransfer();
    const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
    files.items.add(new File([bytes], name, { type: "image/png" }));
    const options = { bubbles: true, cancelable: true };
    document.body.dispatchEvent(type === "paste"
        ? new ClipboardEvent(type, { clipboardData: files, ...options })
        : new DragEvent(type, { dataTransfer: files, ...options }));
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def open_page(browser: Browser, mesh: Mesh) -> Iterator[Open]:
    """Opens the page; at the end no request has left its server and the browser has nothing to complain about."""
    visits: list[tuple[str, Visit]] = []

    def open_page(address: str = mesh.http_url, **options: Any) -> Visit:
        visits.append((address, Visit.pay(browser, address, **options)))
        return visits[-1][1]

    yield open_page
    for address, visit in visits:
        visit.page.context.close()
        assert [url for url in visit.addresses if not url.startswith((f"{address}/", "blob:", "data:"))] == []
        assert visit.complaints == []


@pytest.fixture
def visit(open_page: Open) -> Visit:
    return open_page()


@pytest.fixture
def gateway(mesh: Mesh) -> Iterator[Gateway]:
    """Starts a second gateway with settings of its own, and returns its address."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(running_gateway(mesh, **settings))


def sent(page: Page) -> list[Any]:
    """Return a list that the bodies of the page's requests for an answer will be added to."""
    bodies: list[Any] = []
    page.on("request", lambda request: bodies.append(request.post_data_json) if request.url.endswith(CHAT) else None)
    return bodies


def speech(body: Any) -> bytes:
    """Return the recording in a request's last message."""
    (part,) = (part for part in body["messages"][-1]["content"] if part["type"] == "input_audio")
    return base64.b64decode(part["input_audio"]["data"].partition(",")[2])


def transcript(ask: Asker, recording: bytes) -> str:
    """Return what the mesh hears in a recording."""
    answer = ask.http.post("/v1/audio/transcriptions", files={"file": recording}, data={"model": MODEL})
    return str(answer.json()["text"])


def force(page: Page, answer: str) -> None:
    """Have the decoder give this answer: the page's requests go on to the mesh with it as their only choice."""

    def handle(route: Route) -> None:
        body = {
            **json.loads(route.request.post_data or "{}"),
            "enable_thinking": False,
            "structured_outputs": {"choice": [answer]},
        }
        route.continue_(post_data=json.dumps(body))

    page.route(f"**{CHAT}", handle)


def marked(page: Page) -> list[tuple[int, int]]:
    """Return the points that are marked on the screenshot, in thousandths of it, by where they are drawn."""
    shot = page.locator("#shot").bounding_box()
    assert shot is not None
    boxes = [mark.bounding_box() for mark in page.locator(".tap").all()]
    return [
        (round(1000 * (box["x"] - shot["x"]) / shot["width"]), round(1000 * (box["y"] - shot["y"]) / shot["height"]))
        for box in boxes
        if box is not None
    ]


def test_a_typed_question_is_answered_in_steps(visit: Visit) -> None:
    visit.write("Who are you?")
    answer = visit.answer()
    expect(answer.locator(".said")).to_contain_text("AutoGLM-Phone")
    assert answer.locator(".said").evaluate("said => said.childNodes.length") > 3
    reasoning = answer.locator("details.reasoning")
    expect(reasoning.locator("p")).not_to_be_visible()
    reasoning.locator("summary").click()
    expect(reasoning.locator("p")).not_to_be_empty()
    for stage in ("queue", "prefill", "decode"):
        expect(answer.get_by_role("row", name=re.compile(rf"^{stage} \d+(\.\d+)? m?s"))).to_be_visible()
    expect(answer.locator(".tokens")).to_contain_text("tokens in")


def test_a_tap_is_drawn_where_the_answer_says(visit: Visit, ask: Asker) -> None:
    image = image_bytes_part(SCREENSHOT.read_bytes())
    point = tap(ask(image, "Open Clock", enable_thinking=True))
    assert point is not None
    visit.show(SCREENSHOT)
    visit.write("Open Clock")
    answer = visit.answer()
    expect(answer.locator(".action")).to_have_text(f"Tap {point[0]}, {point[1]}")
    expect(answer.get_by_role("row", name=re.compile("^image .* ms cache miss|cached"))).to_have_count(1)
    expect(answer.get_by_role("row", name=re.compile(r"^image [01]\.\d\d$"))).to_have_count(1)
    assert marked(visit.page) == [point]
    assert visit.page.locator("#shot").evaluate("shot => shot.naturalWidth") == 1080


def test_a_conversation_keeps_its_screen_until_a_new_one(visit: Visit) -> None:
    bodies = sent(visit.page)
    visit.show(SCREENSHOT)
    visit.write("Open Clock")
    first = visit.answer().locator(".said").inner_text()
    visit.write("Open Notes")
    expect(visit.page.locator(".answer[aria-busy=false] .action")).to_have_count(2)
    roles = [message["role"] for message in bodies[-1]["messages"]]
    kinds = [part["type"] for part in bodies[-1]["messages"][-1]["content"]]
    assert (roles, kinds) == (["user", "assistant", "user"], ["text"])
    assert bodies[-1]["messages"][1]["content"] == first
    visit.page.get_by_role("button", name="New conversation").click()
    expect(visit.page.locator(".answer")).to_have_count(0)
    expect(visit.page.locator("#shot")).to_be_hidden()
    visit.write("Who are you?")
    visit.answer()
    assert len(bodies[-1]["messages"]) == 1


def test_speech_is_recorded_as_it_was_said(visit: Visit, ask: Asker) -> None:
    bodies = sent(visit.page)
    visit.page.get_by_role("button", name="Record speech").click()
    expect(visit.page.locator("#timer")).to_have_text("0:02")
    visit.page.get_by_role("button", name="Stop recording").click()
    visit.page.locator("#attached audio").wait_for()
    visit.page.get_by_role("button", name="Send").click()
    visit.answer()
    recorded = speech(bodies[0])
    assert transcript(ask, recorded) == transcript(ask, SPEECH.read_bytes()) != ""
    assert container(recorded) == "webm"


@pytest.mark.parametrize("kind", ["wav", "ogg", "flac"])
def test_a_recording_is_uploaded_as_it_is_and_understood(visit: Visit, ask: Asker, tmp_path: Path, kind: str) -> None:
    bodies, recording = sent(visit.page), tmp_path / f"instruction.{kind}"
    samples, rate = soundfile.read(SPEECH)
    soundfile.write(recording, samples, rate, subtype="OPUS" if kind == "ogg" else None)
    parts = image_bytes_part(SCREENSHOT.read_bytes()), audio_bytes_part(recording.read_bytes(), kind)
    point = tap(ask(*parts, enable_thinking=True))
    assert point is not None
    visit.show(SCREENSHOT)
    visit.speak(recording)
    visit.page.get_by_role("button", name="Send").click()
    expect(visit.answer().get_by_role("row", name=re.compile("^speech .* ms"))).to_have_count(1)
    assert marked(visit.page) == [point]
    assert speech(bodies[0]) == recording.read_bytes()


def test_a_screenshot_is_pasted_and_dropped(visit: Visit) -> None:
    data = base64.b64encode(SCREENSHOT.read_bytes()).decode()
    for how in ("paste", "drop"):
        visit.page.evaluate(GIVE, [how, "home.png", data])
        expect(visit.page.locator("#shot")).to_be_visible()
        visit.page.get_by_role("button", name="Remove").click()
        expect(visit.page.locator("#shot")).to_be_hidden()


def test_a_file_that_is_no_medium_is_refused_by_the_page(visit: Visit) -> None:
    visit.page.locator("#speech-file").set_input_files(Path(__file__))
    expect(visit.page.get_by_role("alert")).to_contain_text("This is no image")


def test_a_swipe_is_drawn_from_end_to_end(visit: Visit) -> None:
    force(visit.page, 'do(action="Swipe", start=[500,800], end=[500,200])')
    visit.show(SCREENSHOT)
    visit.write("Scroll down")
    expect(visit.answer().locator(".action")).to_have_text("Swipe 500, 800 → 500, 200")
    assert sorted(marked(visit.page)) == [(500, 200), (500, 800)]
    expect(visit.page.locator("#swipe")).to_have_attribute("points", "500,800 500,200")


def test_what_the_model_says_is_text(visit: Visit) -> None:
    markup = '<img src="x" onerror="alert(1)">'
    force(visit.page, markup)
    visit.write(markup)
    expect(visit.answer().locator(".said")).to_have_text(markup)
    expect(visit.page.locator("#log img")).to_have_count(0)


def test_the_policy_of_the_page_keeps_scripts_out(open_page: Open) -> None:
    visit = open_page()
    visit.page.evaluate("document.body.append(Object.assign(document.createElement('script'), {text: 'broken = 1'}))")
    assert visit.page.evaluate("typeof broken") == "undefined"
    assert len(visit.complaints) == 1
    visit.forgive("Executing inline script violates the following Content Security Policy directive")


def test_the_language_is_the_readers_and_can_be_changed(open_page: Open) -> None:
    visit = open_page(locale="zh-CN")
    html = visit.page.locator("html")
    expect(html).to_have_attribute("lang", "zh-CN")
    visit.page.get_by_role("textbox", name="消息").fill("你是谁?")
    visit.page.get_by_role("button", name="发送").click()
    expect(visit.answer()).to_contain_text("各阶段用时")
    visit.page.get_by_role("button", name="English").click()
    expect(html).to_have_attribute("lang", "en")
    expect(visit.answer()).to_contain_text("Stages")
    visit.page.reload()
    expect(visit.page.get_by_role("button", name="Send")).to_be_visible()


def _tab(page: Page) -> str:
    """Press Tab and return what has the focus, which must be seen; empty after the last element."""
    page.keyboard.press("Tab")
    name, style = page.evaluate("""() => {
        const focused = document.activeElement;
        if (focused === document.body) return ["", ""];
        const shown = focused.closest(".phone") ?? (focused.id === "text" ? focused.form : focused);
        const name = focused.id || (focused.closest(".examples") ? "example" : focused.tagName.toLowerCase());
        return [name, getComputedStyle(shown).outlineStyle];
    }""")
    assert style != "none", f"the focus on {name} is not seen"
    return str(name)


def test_everything_is_done_with_the_keyboard(visit: Visit) -> None:
    page, keys = visit.page, visit.page.keyboard
    reached = list(iter(lambda: _tab(page), ""))
    start = ["language", "fresh", "image-file", "log", *["example"] * 3]
    write = ["text", "add-image", "record", "add-speech", "send", "model", "thinking", "summary"]
    assert reached == [*start, *write, *["a"] * 4]
    page.locator("#text").focus()
    keys.type("Who are")
    keys.press("Shift+Enter")
    keys.type("you?")
    keys.press("Enter")
    expect(page.locator(".question")).to_have_text("Who are\nyou?", use_inner_text=True)
    visit.answer()
    expect(page.locator("#text")).to_be_focused()


@pytest.mark.parametrize("how", ["Escape", "the button"])
def test_an_answer_is_stopped_in_its_middle(visit: Visit, ask: Asker, how: str) -> None:
    page = visit.page
    force(page, "la " * 600)
    visit.write("Who are you?")
    expect(page.locator(".said")).not_to_be_empty()
    button = page.get_by_role("button", name="Stop")
    button.wait_for()
    if how == "Escape":
        page.keyboard.press(how)
    else:
        button.click()
    expect(visit.answer()).to_contain_text("Stopped.")
    eventually(lambda: ask.running() == 0, "the gateway lets go of what nobody waits for")
    page.unroute_all()
    visit.write("Who are you?")
    expect(page.locator(".answer[aria-busy=false]")).to_have_count(2)
    expect(visit.answer().locator(".said")).to_contain_text("AutoGLM-Phone")


def test_an_error_is_told_in_the_servers_words_and_the_message_kept(visit: Visit, ask: Asker, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(SCREENSHOT.read_bytes()[:100])
    told = ask.post(image_bytes_part(broken.read_bytes()), "Open Clock").json()["error"]["message"]
    visit.show(broken)
    visit.write("Open Clock")
    expect(visit.answer().get_by_role("alert")).to_have_text(told)
    expect(visit.page.locator("#text")).to_have_value("Open Clock")
    expect(visit.page.locator("#attached img")).to_have_count(1)
    visit.forgive(REFUSED)


def test_a_key_is_asked_for_and_kept_for_the_tab_alone(open_page: Open, gateway: Gateway) -> None:
    visit = open_page(gateway(api_keys="sesame"))
    page, key = visit.page, visit.page.get_by_label("API key")
    expect(key).to_be_focused()
    expect(key).to_have_accessible_description(re.compile("This server asks for an API key"))
    visit.write("Who are you?")
    expect(visit.answer().get_by_role("alert")).to_contain_text("This server asks for an API key")
    expect(key).to_be_focused()
    visit.forgive(REFUSED)
    key.fill("sesame")
    key.press("Enter")
    expect(key).to_have_accessible_description(re.compile("^Needed where"))
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".answer .said").last).to_contain_text("AutoGLM-Phone")
    assert page.evaluate("[Object.entries(sessionStorage), localStorage.length]") == [[["api-key", "sesame"]], 0]
    with page.expect_response("**/v1/models") as models:
        page.reload()
    assert models.value.status == 200


def test_too_many_requests_are_told_with_the_wait(open_page: Open, gateway: Gateway) -> None:
    visit = open_page(gateway(api_keys="sesame", tenant_requests_per_minute="1"), locale="zh-CN")
    key = visit.page.get_by_label("API 密钥")
    key.fill("sesame")
    key.press("Enter")
    for count in (1, 2):
        visit.page.get_by_role("textbox", name="消息").fill("你是谁?")
        visit.page.keyboard.press("Enter")
        expect(visit.page.locator(".answer[aria-busy=false]")).to_have_count(count)
    told = visit.answer().get_by_role("alert")
    expect(told).to_contain_text(re.compile(r"请求太多.*请在 \d+ 秒后再试", re.DOTALL))
    visit.page.get_by_role("button", name="English").click()
    expect(told).to_contain_text(re.compile(r"one request too many.*Try again in \d+ s", re.DOTALL))
    visit.forgive(REFUSED)


def test_only_what_the_model_understands_is_offered(open_page: Open) -> None:
    modalities = ["text"]

    def handle(route: Route) -> None:
        body = route.fetch().json()
        cards = [{**card, "modalities": modalities} for card in body["data"]]
        route.fulfill(json={**body, "data": cards})

    visit = open_page(prepare=lambda page: (page.clock.install(), page.route("**/v1/models", handle)))
    page = visit.page
    offered = [page.locator("#screen"), *(page.locator(f"#{name}") for name in ("add-image", "record", "add-speech"))]
    for element in offered:
        expect(element).to_be_hidden()
    page.evaluate(GIVE, ["drop", "home.png", base64.b64encode(SCREENSHOT.read_bytes()).decode()])
    expect(page.get_by_role("alert")).to_contain_text("reads no images")
    expect(page.locator("#attached")).to_be_empty()
    modalities += ["image", "audio"]
    page.clock.run_for(15_000)  # milliseconds until the page looks again
    for element in offered:
        expect(element).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_held_against_it_by_the_rules_of_accessibility(open_page: Open, scheme: str) -> None:
    visit = open_page(color_scheme=scheme, reduced_motion="reduce")
    visit.page.get_by_text("More settings").click()
    assert not (found := Axe().run(visit.page)).violations_count, found.generate_report()
    visit.show(SCREENSHOT)
    visit.speak(SPEECH)
    visit.write("Open Clock")
    visit.answer().locator(".reasoning summary").click()
    assert not (found := Axe().run(visit.page)).violations_count, found.generate_report()


def test_another_model_can_be_chosen(visit: Visit) -> None:
    bodies = sent(visit.page)
    visit.page.get_by_label("Model").select_option(MODEL)
    visit.page.get_by_label("Thinking").uncheck()
    visit.write("Who are you?")
    expect(visit.answer().locator(".reasoning")).to_have_count(0)
    assert (bodies[0]["model"], bodies[0]["enable_thinking"]) == (MODEL, False)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(open_page: Open, scheme: str) -> None:
    visit = open_page(viewport={"width": 360, "height": 740}, color_scheme=scheme)
    page = visit.page
    visit.show(SCREENSHOT)
    visit.write("Open Clock")
    visit.answer()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    expect(page.get_by_role("button", name="Send")).to_be_in_viewport()
    dark = page.evaluate("getComputedStyle(document.documentElement).backgroundColor.match(/\\d+/g)[0] < 100")
    assert dark == (scheme == "dark")
