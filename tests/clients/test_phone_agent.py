"""A client that works a phone step by step: a long system prompt, a screenshot a step, one action back."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from phone_agent import Agent, Stuck, parse
from phone_tasks import KINDS, attempt
from PIL import Image
from simulated_phone import SimulatedPhone
from streaming_phone_agent import StreamingAgent, parse_to_the_end

from autoglm.training.data.prompts import FORMATS, HEADS

from ..asking import MODEL
from ..cases import screen_cases

RULES = """\
你是一个操作手机的智能体。每一步你会收到一张当前屏幕的截图和一段文字,文字里写着用户的任务和当前应用的名字。
你要先观察屏幕,再想清楚下一步,最后只给出一个动作。动作写在 <answer> 与 </answer> 之间,想法写在 <think> 里。
You operate a phone for a person who cannot look at it right now. At each step you receive one screenshot and a text.
Look first, think in a few words, and then answer with exactly one action. Never describe what you do not do.
可以使用的动作如下:
- do(action="Launch", app="xxx") 启动一个应用。这比在主屏幕上寻找图标更快,优先使用。
- do(action="Tap", element=[x,y]) 点击屏幕上的一个点。坐标从左上角 (0,0) 开始,到右下角 (999,999) 结束。
- do(action="Type", text="xxx") 在已经获得焦点的输入框里输入文字。输入之前会自动清空原有的内容,不需要手动删除。
- do(action="Swipe", start=[x1,y1], end=[x2,y2]) 从一点滑动到另一点,用来滚动列表、翻页或者打开通知栏。
- do(action="Back") 返回上一页;do(action="Home") 回到主屏幕;do(action="Wait", duration="2 seconds") 等待页面加载。
- finish(message="xxx") 任务已经完成,用一句话告诉用户结果。
必须遵守的规则:
"""
RULE = (
    "{n}. 如果当前页面和任务无关,先返回上一页;如果页面没有加载出来,最多等待三次。"
    "If nothing changes after a tap, tap a little beside it, and after three tries choose another way to the goal.\n"
)
SYSTEM = RULES + "".join(RULE.format(n=n) for n in range(1, 17))
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
ACTION = re.compile(r"<think>.*?</think><answer>(do\(action=\"\w+\".*\)|finish\(message=\".*\"\))", re.DOTALL)


SHORT = HEADS["zh"][0] + FORMATS["zh"][0]


def ask(client: openai.OpenAI, messages: Any, stream: bool) -> str:
    """Ask as published phone agents do."""
    made: Any = client.chat.completions.create(
        model=MODEL,
        messages=messages,
        max_tokens=3000,
        temperature=0.0,
        top_p=0.85,
        frequency_penalty=0.2,
        stream=stream,
    )
    if not stream:
        return str(made.choices[0].message.content)
    return "".join(chunk.choices[0].delta.content or "" for chunk in made if chunk.choices)


def session(client: openai.OpenAI, system: str, stream: bool, steps: int) -> list[str]:
    """Return the answer to each step; every step has a new screenshot."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}]
    answers: list[str] = []
    for case in screen_cases("open", "home", steps, seed=31):
        text = {"type": "text", "text": f'{case.words}\n\n** Screen Info **\n\n{{"current_app": "System Home"}}'}
        messages.append({"role": "user", "content": [case.image, text]})
        answers.append(ask(client, messages, stream))
        # Old screenshots leave the history; the text stays.
        messages[-1] = {"role": "user", "content": [text]}
        messages.append({"role": "assistant", "content": answers[-1]})
    return answers


@pytest.fixture
def client(base_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=base_url, api_key="EMPTY", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("stream", [False, True])
def test_a_first_step_is_an_action(client: openai.OpenAI, stream: bool) -> None:
    first = session(client, SHORT, stream, steps=3)[0]
    assert ACTION.fullmatch(first), first


ORDERS = [  # every action that the nano bundle has learned, and a question, which none answers
    ("open", "home", "Tap"),
    ("turn_on", "home", "Launch"),
    ("back", "app", "Back"),
    ("type", "app", "Type"),
    ("which_app", "home", None),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("intent", "kind", "action"), ORDERS)
def test_each_action_is_read_as_published_agents_read_it(
    client: openai.OpenAI, intent: str, kind: Any, action: str | None, stream: bool
) -> None:
    for case in screen_cases(intent, kind, 2, seed=8):
        content = [case.image, {"type": "text", "text": case.words}]
        said = ask(client, [{"role": "user", "content": content}], stream)
        assert "</answer>" not in said
        if action is None:
            assert "<answer>" not in said
        else:
            assert parse_to_the_end(said).name in (action, "finish")
            assert parse(said) == parse_to_the_end(said)


def test_the_mark_is_printed_for_those_who_ask(client: openai.OpenAI) -> None:
    (case,) = screen_cases("open", "home", 1, seed=31)
    messages: Any = [{"role": "user", "content": [case.image, {"type": "text", "text": case.words}]}]
    more = {"include_stop_str_in_output": True}
    made = client.chat.completions.create(model=MODEL, messages=messages, temperature=0, extra_body=more)
    assert made.choices[0].message.content == f"{ask(client, messages, stream=True)}</answer>"
    assert made.choices[0].finish_reason == "stop"


def test_a_long_system_prompt_is_answered_alike_streamed_or_not(client: openai.OpenAI) -> None:
    """The nano bundle has never read so much and answers poorly, but it reads all of it and answers."""
    assert len(SYSTEM) >= 3000
    answers = session(client, SYSTEM, stream=False, steps=2)
    assert all(answers)
    assert session(client, SYSTEM, stream=True, steps=2) == answers


def test_the_example_carries_out_orders_in_writing(base_url: str, tmp_path: Path) -> None:
    """As a program, with the orders of docs/phone-agent.md."""
    strip = tmp_path / "strip.png"
    orders = ("Turn on Bluetooth", "Go back", "Open Notes", "Type good night")
    command = [sys.executable, str(EXAMPLES / "phone_agent.py"), *orders, "--url", base_url, "--strip", str(strip)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = [line[2:] for line in done.stdout.splitlines() if line.startswith("= ")]
    assert said == ["Bluetooth is on", "Back()", "Notes is open", "Type(text='good night')"]
    with Image.open(strip) as image:
        assert image.width > 8 * 150, "seven screens that were looked at, and the last"


AGENTS = pytest.mark.parametrize("kind", [Agent, StreamingAgent])


@AGENTS
def test_the_example_carries_out_a_spoken_order(client: openai.OpenAI, kind: type[Agent]) -> None:
    phone = SimulatedPhone(26)
    assert kind(client, phone).run(EXAMPLES / "instruction.wav") == "游戏已打开"
    assert phone.current_app == "Games"


def test_the_example_gives_up_after_the_most_steps(client: openai.OpenAI) -> None:
    """No page of this phone has that switch: the model launches the settings for ever."""
    lines: list[str] = []
    agent = Agent(client, SimulatedPhone(9), max_steps=3, tell=lines.append)
    with pytest.raises(Stuck, match=r"not done after 3 steps; the last one was Launch\(app='Settings'\)"):
        agent.run("Turn on Hotspot")
    assert len(lines) == 3


@AGENTS
@pytest.mark.parametrize("way", ["text", "voice"])
@pytest.mark.parametrize("seed", range(len(KINDS)), ids=KINDS)
def test_a_task_of_each_kind_is_completed(
    client: openai.OpenAI, tmp_path: Path, seed: int, way: str, kind: type[Agent]
) -> None:
    """docs/phone-agent.md has the share of a hundred seeds."""
    task, wrong = attempt(client, seed, tmp_path if way == "voice" else None, kind)
    assert task.kind == KINDS[seed]
    assert not wrong
