"""Writes what the nano bundle can do into both READMEs, from the evaluation in the bundle.

`python tools/readme_tables.py --check` changes nothing and fails when a README says something else.
"""

import json
import re

from pages import ROOT, write_or_check

REPORT = ROOT / "bundles" / "autoglm-phone-nano" / "evaluation.json"
TALK = ("abilities", "cannot", "goodbye", "greeting", "identity", "thanks")
DISTRACTED = tuple(f"{task}+distraction" for task in TALK)
OPEN = ("open: tap", "open")
QUESTIONS = ("colour", "exists", "switch_state", "where", "which_app")
COMMANDS = ("back", "type", "turn_on", "turn_off", "turn_on: tap", "turn_off: tap", "confirm: tap", "cancel: tap")
DICTATION = ("dictation", "dictation+distraction")
LOOSE_WORDS = ("dictation: loose words", "dictation: loose words+distraction")
HEADS = {
    "README.md": ("Held-out task", "cases", "right", "chance"),
    "README.zh-CN.md": ("留出样本上的任务", "样本数", "正确率", "随机"),
}

# English, Chinese, source, tasks, chance.
GROUPS: tuple[tuple[str, str, str, tuple[str, ...], str], ...] = (
    ("says who it is and what it can do; small talk", "自我介绍、闲聊", "text", (*TALK, *DISTRACTED), "–"),
    (
        "opens a named app: taps it, launches it, or sees it is open",
        "打开某个应用:点击、启动或看出已打开",
        "screen",
        OPEN,
        "< .05",
    ),
    (
        "follows other orders: settings, buttons, typing, back",
        "其他指令:设置、按钮、输入、返回",
        "screen",
        COMMANDS,
        "< .50",
    ),
    (
        "answers: which app, where, colour, switch, is it there",
        "回答:哪个应用、位置、颜色、开关、有没有",
        "screen",
        QUESTIONS,
        "< .50",
    ),
    ("counts apps", "数应用", "screen", ("count",), ".06"),
    ("opens a named app, by voice", "语音:打开某个应用", "screen+speech", OPEN, "< .05"),
    ("follows other orders, by voice", "语音:其他指令", "screen+speech", COMMANDS, "< .50"),
    ("answers the same questions, by voice", "语音:同样的问题", "screen+speech", QUESTIONS, "< .50"),
    ("sums and differences up to 20", "20 以内加减法", "text", ("sum", "sum+distraction"), ".02"),
    ("repeats a given text", "重复给定的文字", "text", ("repeat", "repeat+distraction"), "0"),
    ("dictation, whole sentence right", "听写,整句正确", "speech", DICTATION, "0"),
    ("dictation of words in any order, all right", "听写顺序随意的词语,全部正确", "speech", LOOSE_WORDS, "0"),
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
        head = re.escape(f"| {' | '.join(HEADS[readme])} |")
        fresh = re.sub(rf"{head}\n(?:\|.*\n)+", table(readme) + "\n", path.read_text(encoding="utf-8"))
        write_or_check(path, fresh)


if __name__ == "__main__":
    main()
