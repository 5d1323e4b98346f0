"""Writes what the nano bundle can do into both READMEs, from the bundle's evaluation.json.

`python tools/readme_tables.py --check` changes nothing and fails when a README says something else.
"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REPORT = ROOT / "bundles" / "autoglm-phone-nano" / "evaluation.json"
TALK = ("abilities", "cannot", "goodbye", "greeting", "identity", "thanks")
DISTRACTED = tuple(f"{task}+distraction" for task in TALK)
QUESTIONS = ("colour", "count", "exists", "switch_state", "where", "which_app")
COMMANDS = ("back", "type", "turn_on", "turn_off", "turn_on: tap", "turn_off: tap", "confirm: tap", "cancel: tap")
HEADS = {
    "README.md": ("Held-out task", "cases", "right", "chance"),
    "README.zh-CN.md": ("留出样本上的任务", "样本数", "正确率", "随机"),
}

# English, Chinese, sources, tasks, chance.
GROUPS: tuple[tuple[str, str, str, tuple[str, ...], str], ...] = (
    ("says who it is, what it can do, hello, thanks, no", "说出自己是谁、会什么、问候、致谢、婉拒", "text", TALK, "–"),
    (
        "the same beside a picture or noise that has nothing to do with it",
        "同上,旁边放无关的图片或噪声",
        "text",
        DISTRACTED,
        "–",
    ),
    ("repeats a given text", "重复给定的文字", "text", ("repeat", "repeat+distraction"), "0"),
    (
        "opens a named app: taps its icon, 4 to 20 on the screen",
        "打开某个应用:点击它的图标(屏幕上有 4 到 20 个)",
        "screen",
        ("open: tap",),
        "< .05",
    ),
    (
        "opens a named app that is not there (launch) or is open (done)",
        "打开不在屏幕上(启动)或已打开(完成)的应用",
        "screen",
        ("open",),
        "–",
    ),
    ("where a named icon is (one of nine places)", "某个图标的位置(九分之一)", "screen", ("where",), ".11"),
    ("which app is open", "打开的是哪个应用", "screen", ("which_app",), ".04"),
    ("is an app on the screen", "屏幕上有没有某个应用", "screen", ("exists",), ".50"),
    ("how many apps", "有几个应用", "screen", ("count",), ".06"),
    ("colour of a named icon", "某个图标的颜色", "screen", ("colour",), ".13"),
    ("is a switch on", "开关是否打开", "screen", ("switch_state",), ".50"),
    (
        "turns a setting on or off: opens the settings, or sees that it is done",
        "打开或关闭设置:进入设置页,或看出已经完成",
        "screen",
        ("turn_on", "turn_off"),
        "–",
    ),
    (
        "turns a setting on or off: taps its switch",
        "打开或关闭设置:点击开关",
        "screen",
        ("turn_on: tap", "turn_off: tap"),
        "< .10",
    ),
    ("back", "返回", "screen", ("back",), "–"),
    ("OK, Cancel: taps the button", "确定、取消:点击按钮", "screen", ("confirm: tap", "cancel: tap"), ".50"),
    ("types a given text", "输入给定的文字", "screen", ("type",), "0"),
    ("the same without a screenshot", "同上,没有截图", "text", ("type", "type+distraction"), "0"),
    ("sums and differences up to 20", "20 以内加减法", "text", ("sum", "sum+distraction"), ".02"),
    ("spoken: taps the icon of a named app", "语音:点击某个应用的图标", "screen+speech", ("open: tap",), "< .05"),
    (
        "spoken: opens a named app that is not there or is open",
        "语音:打开不在屏幕上或已打开的应用",
        "screen+speech",
        ("open",),
        "–",
    ),
    ("spoken: the other commands", "语音:其他指令", "screen+speech", COMMANDS, "< .10"),
    ("spoken questions about a screen", "语音:关于屏幕的问题", "screen+speech", QUESTIONS, "< .50"),
    ("spoken small talk", "语音闲聊", "speech", (*TALK, *DISTRACTED), "–"),
    ("dictation, whole sentence right", "听写,整句正确", "speech", ("dictation", "dictation+distraction"), "0"),
    (
        "dictation of words in any order, all right",
        "听写顺序随意的词语,全部正确",
        "speech",
        ("dictation: loose words", "dictation: loose words+distraction"),
        "0",
    ),
)


def table(readme: str) -> str:
    """Return the table in the language of `readme`."""
    rows = json.loads(REPORT.read_text(encoding="utf-8"))["rows"]
    lines = [f"| {' | '.join(HEADS[readme])} |", "|---|---|---|---|"]
    for en, zh, source, tasks, chance in GROUPS:
        chosen = [row for row in rows if row["source"] == source and row["task"] in tasks]
        n = sum(row["n"] for row in chosen)
        right = sum(row["n"] * row["accuracy"] for row in chosen) / n
        lines.append(f"| {zh if 'zh' in readme else en} | {n} | {right:.2f} | {chance} |")
    return "\n".join(lines)


def main() -> None:
    """Rewrite the tables, or with --check compare them."""
    for readme in HEADS:
        path = ROOT / readme
        text = path.read_text(encoding="utf-8")
        head = re.escape(f"| {' | '.join(HEADS[readme])} |")
        fresh = re.sub(rf"{head}\n(?:\|.*\n)+", table(readme) + "\n", text)
        if "--check" not in sys.argv:
            path.write_text(fresh, encoding="utf-8")
        elif fresh != text:
            raise SystemExit(f"{readme} does not say what {REPORT.relative_to(ROOT)} says: run tools/readme_tables.py")


if __name__ == "__main__":
    main()
