"""How the example agent reads actions, and what it does with an answer that is none."""

from typing import Any

import pytest
from phone_agent import Action, Stuck, parse
from simulated_phone import SETTINGS, SimulatedPhone
from streaming_phone_agent import parse_to_the_end


@pytest.mark.parametrize(
    ("call", "action"),
    [
        ('do(action="Tap", element=[12,999])', Action("Tap", {"element": [12, 999]})),
        ('do(action="Type", text="a \\"b\\", (c)")', Action("Type", {"text": 'a "b", (c)'})),
        ('\n do(action="Back")\n', Action("Back", {})),
        ('finish(message="好了")', Action("finish", {"message": "好了"})),
    ],
)
@pytest.mark.parametrize("ends", ["", "</answer>", "</answer>\n"])
def test_an_action_is_read(call: str, action: Action, ends: str) -> None:
    """Whether the server prints the mark that ends it or not."""
    assert parse(f"<think>A thought.</think><answer>{call}{ends}") == action


@pytest.mark.parametrize(
    ("answer", "action"),
    [
        ('<think>x</think><answer>do(action="Tap", element=[12,999])', Action("Tap", {"element": [12, 999]})),
        ('do(action="Swipe", start=[1,2], end=[3,4])\n', Action("Swipe", {"start": [1, 2], "end": [3, 4]})),
        ('<answer>do(action="Type", text="say "hi", (now)")', Action("Type", {"text": 'say "hi", (now)'})),
        ('Done. finish(message="do(action= is no action")', Action("finish", {"message": "do(action= is no action"})),
    ],
)
def test_published_agents_read_an_action_to_the_end(answer: str, action: Action) -> None:
    assert parse_to_the_end(answer) == action


@pytest.mark.parametrize(
    "answer",
    [
        "Bluetooth is on.",
        '<answer>do(action="Back")</answer>',
        '<answer>do(action="Type", text="hello")</answer>',
        'finish(message="cut',
        'do(action="Tap", element=[1,1000])',
        'do(action="Back") and more',
        'do(action="Back") + 1',
    ],
)
def test_what_follows_an_action_makes_it_none_for_them(answer: str) -> None:
    with pytest.raises(Stuck, match="no action that a phone can do"):
        parse_to_the_end(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        'do(action="Back")',
        "<answer></answer>",
        "<answer>Bluetooth is on.</answer>",
        '<answer>do(action="Tap", element=[1,1000])</answer>',
        '<answer>do(action="Tap", element=[1])</answer>',
        '<answer>do(action="Tap", element=[True,2])</answer>',
        '<answer>do(action="Tap")</answer>',
        '<answer>do(action="Call", number="112")</answer>',
        '<answer>do(action=["Tap"])</answer>',
        '<answer>do(action="Type", text=open("/etc/passwd").read())</answer>',
        '<answer>__import__("os").system("true")</answer>',
        '<answer>do(**{"action": "Back"})</answer>',
        '<answer>finish(message="cut',
        f"<answer>{'(' * 3000}</answer>",
        f"<answer>{'-' * 3000}1</answer>",
    ],
)
def test_anything_else_is_said_to_be_none(answer: str) -> None:
    with pytest.raises(Stuck, match="no action that a phone can do"):
        parse(answer)


@pytest.fixture
def phone() -> SimulatedPhone:
    return SimulatedPhone(9)


def centre(phone: SimulatedPhone, kind: str, name: str) -> dict[str, Any]:
    page = phone.page(phone.state.page)
    found = next(each for each in page.elements if (each.kind, each.name) == (kind, name))
    return {"element": [round(n) for n in found.centre]}


def test_taps_change_the_phone_and_what_is_seen(phone: SimulatedPhone) -> None:
    home = phone.screenshot()
    phone.do("Launch", {"app": "设置"})
    before = phone.screenshot()
    assert "bluetooth" not in phone.state.on
    phone.do("Tap", centre(phone, "switch", "bluetooth"))
    assert "bluetooth" in phone.state.on
    assert phone.screenshot() != before
    phone.do("Tap", centre(phone, "switch", "bluetooth"))
    assert phone.screenshot() == before
    phone.do("Tap", centre(phone, "back", "back"))
    assert phone.screenshot() == home
    phone.do("Tap", centre(phone, "icon", "notes"))
    assert phone.current_app == "Notes"


def test_text_goes_into_the_field_of_the_open_app(phone: SimulatedPhone) -> None:
    phone.do("Type", {"text": "nowhere"})
    assert not phone.state.typed
    phone.do("Launch", {"app": "Notes"})
    empty = phone.screenshot()
    phone.do("Type", {"text": "hello"})
    assert phone.state.typed == {("notes", "hello")}
    assert phone.screenshot() != empty


def test_what_has_no_effect_changes_nothing(phone: SimulatedPhone) -> None:
    start = phone.state
    for action, arguments in (
        ("Launch", {"app": "Telegraph"}),
        ("Tap", {"element": [999, 999]}),
        ("Swipe", {"start": [500, 800], "end": [500, 200]}),
        ("Wait", {"duration": "2 seconds"}),
    ):
        phone.do(action, arguments)
        assert phone.state == start, action


def test_a_seed_gives_the_same_phone() -> None:
    first, again = SimulatedPhone(4), SimulatedPhone(4)
    assert first.state == again.state
    for each in (first, again):
        each.do("Launch", {"app": "Maps"})
    assert first.screenshot() == again.screenshot()
    assert first.page(SETTINGS).elements == again.page(SETTINGS).elements
