"""A phone agent that needs only the OpenAI API: it looks, thinks and acts until the order is carried out.

    python examples/phone_agent.py "Turn on Bluetooth" "Open Notes" "Type good night"
    python examples/phone_agent.py examples/instruction.wav --strip steps.png

An order is text or a recording, which is sent unchanged. The phone here is simulated (simulated_phone.py); for a real
one, write a class with the same three members.
"""

import argparse
import ast
import base64
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from openai import OpenAI

SYSTEM = """\
你替用户操作手机,一步一步完成任务。每一步你会看到当前屏幕的截图,还有用户的任务。
每一步都这样回答:
<think>你的想法</think><answer>一个动作</answer>
能用的动作有:
- do(action="Launch", app="应用名"): 启动应用
- do(action="Tap", element=[x,y]): 点击屏幕上的一个点,坐标从左上角(0,0)到右下角(999,999)
- do(action="Type", text="文字"): 在输入框里打字
- do(action="Swipe", start=[x1,y1], end=[x2,y2]): 滑动页面
- do(action="Back"): 回到上一页
- do(action="Home"): 回到主屏幕
- do(action="Wait", duration="x seconds"): 等页面加载
- finish(message="结果"): 任务做完时告诉用户
请遵守下面的规则:
1. 每一步只做一个动作。
2. 页面还在加载时先等一等,不要急着点。
3. 同一个动作没有效果时,不要一直重复。
4. 坐标的范围是 0 到 999,左上角是 (0,0)。
5. 要点就点元素的正中间。
6. 屏幕上没有要找的应用时,直接启动它。
7. 走错了页面就返回上一页。
8. 任务已经完成就马上结束,不要再点。
9. 想法要简短,一两句话就够了。
10. 不要修改用户没有提到的设置。
11. 开关已经是用户要的状态时,不要再点它。
12. 付款和删除之前必须先得到用户的同意。
13. 不要编造屏幕上没有的内容。
14. 要发送的文字必须和用户说的一字不差。
15. 结束时用一句话告诉用户结果。
16. Reply in the language of the user.
"""
OPEN, CLOSE = "<answer>", "</answer>"  # around an action; the closing mark ends the answer and is not printed
ACTIONS: dict[str, dict[str, type]] = {  # each action's arguments
    "Launch": {"app": str},
    "Tap": {"element": list},
    "Type": {"text": str},
    "Swipe": {"start": list, "end": list},
    "Back": {},
    "Home": {},
    "Wait": {"duration": str},
    "finish": {"message": str},
}
PARAMETERS: Any = {
    "model": "autoglm-phone-9b",
    "max_tokens": 3000,
    "temperature": 0.0,
    "top_p": 0.85,
    "frequency_penalty": 0.2,
}
ONE_STEP = ("Type", "Back")  # an order to type or to go back is carried out by this one action


class Stuck(Exception):
    """The order is not carried out; the message says why."""


class Phone(Protocol):
    """What the agent needs of a phone."""

    @property
    def current_app(self) -> str:
        """Name of the app in front, "System Home" if none is."""

    def screenshot(self) -> bytes:
        """Return what is on the screen as PNG."""

    def do(self, action: str, arguments: dict[str, Any]) -> None:
        """Carry out an action of ACTIONS; one that has no effect here changes nothing."""


@dataclass(frozen=True, slots=True)
class Action:
    """One call of do(…) or finish(…), whose name is "finish"."""

    name: str
    arguments: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{key}={value!r}' for key, value in self.arguments.items())})"


def parse(answer: str) -> Action:
    """Read the action in a model's answer, as data and never as code. Raises Stuck when there is none."""
    try:
        call = ast.parse(answer.partition(OPEN)[2].partition(CLOSE)[0].strip(), mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            raise ValueError("no call")
        arguments = {str(each.arg): ast.literal_eval(each.value) for each in call.keywords}
        return action_of({"do": arguments.pop("action", ""), "finish": "finish"}[call.func.id], arguments)
    except (SyntaxError, ValueError, KeyError, TypeError, RecursionError):
        raise Stuck(f"the model names no action that a phone can do: {answer!r}") from None


def action_of(name: str, arguments: dict[str, Any]) -> Action:
    """Return an action of ACTIONS; raises KeyError, TypeError or ValueError where this is none."""
    if {key: type(value) for key, value in arguments.items()} != ACTIONS[name]:
        raise ValueError("other arguments")
    points = [value for value in arguments.values() if isinstance(value, list)]
    if not all(len(point) == 2 and all(type(n) is int and 0 <= n <= 999 for n in point) for point in points):
        raise ValueError("no point")
    return Action(name, arguments)


@dataclass(slots=True)
class Agent:
    """Carries out orders on a phone, at most `max_steps` actions each."""

    client: OpenAI
    phone: Phone
    max_steps: int = 6
    tell: Callable[[str], None] = print

    def run(self, order: str | Path) -> str:
        """Carry out one order and return what the model says at its end. Raises Stuck."""
        messages: list[Any] = [{"role": "system", "content": SYSTEM}]
        for _ in range(self.max_steps):
            words, app = self._words(order), self.phone.current_app
            messages.append({"role": "user", "content": [image(self.phone.screenshot()), words]})
            answer = self._ask(messages)
            # Old screenshots cost many tokens and help little: only the text is kept.
            messages[-1] = {"role": "user", "content": [words]}
            messages.append({"role": "assistant", "content": answer.removesuffix(CLOSE) + CLOSE})
            action = self._read(answer)
            self.tell(f"{app}: {answer}")
            if action.name == "finish":
                return str(action.arguments["message"])
            self.phone.do(action.name, action.arguments)
            if action.name in ONE_STEP:
                return str(action)
        raise Stuck(f"not done after {self.max_steps} steps; the last one was {action}")

    def _words(self, order: str | Path) -> dict[str, Any]:
        if isinstance(order, Path):
            return recording(order.read_bytes())
        info = json.dumps({"current_app": self.phone.current_app})
        return {"type": "text", "text": f"{order}\n\n** Screen Info **\n\n{info}"}

    def _ask(self, messages: list[Any]) -> str:
        made = self.client.chat.completions.create(messages=messages, **PARAMETERS)
        return made.choices[0].message.content or ""

    def _read(self, answer: str) -> Action:
        return parse(answer)


def image(png: bytes) -> dict[str, Any]:
    """Return a screenshot as a part of a message."""
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(png).decode()}"}}


def recording(wav: bytes) -> dict[str, Any]:
    """Return a WAV file as a part of a message."""
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(wav).decode(), "format": "wav"}}


def main(kind: type[Agent] = Agent) -> int:
    """Carry out the orders of the command line on a drawn phone; the exit status is 1 when one is not."""
    from simulated_phone import SimulatedPhone

    parser = argparse.ArgumentParser(description="Carry out orders on a simulated phone.")
    parser.add_argument("orders", nargs="+", help="text, or a recording's file name ending in .wav")
    parser.add_argument("--url", default="http://localhost:8000/v1", help="the OpenAI API")
    parser.add_argument("--seed", type=int, default=9, help="which phone: looks, apps, switches")
    parser.add_argument("--strip", type=Path, help="write the screens that were seen to this PNG file")
    given = parser.parse_args()
    phone = SimulatedPhone(given.seed)
    agent = kind(OpenAI(base_url=given.url, api_key="EMPTY"), phone)
    try:
        for order in given.orders:
            print(f"> {order}")
            print(f"= {agent.run(Path(order) if order.endswith('.wav') else order)}")
    except Stuck as error:
        print(f"stuck: {error}", file=sys.stderr)
        return 1
    finally:
        if given.strip:
            phone.save_strip(given.strip)
    return 0


if __name__ == "__main__":
    sys.exit(main())
