"""What people say to a phone: sentence templates per intent and language, split by wording.

A template's `{}` takes the name of an app, a setting or a text to type. The last templates of each
intent are held out: no generator of the train split ever uses them.
"""

from autoglm.training.data.catalog import APPS, LANGUAGES, SETTINGS, Language, Split

HELD_OUT_TEMPLATES = 1

TEMPLATES: dict[str, dict[Language, tuple[str, ...]]] = {
    "open": {
        "zh": ("打开{}", "请打开{}", "帮我打开{}", "点击{}", "进入{}", "我想用{}", "点一下{}"),
        "en": ("Open {}", "Please open {}", "Tap {}", "Tap the {} icon", "Go to {}", "I want to use {}", "Start {}"),
    },
    "colour": {
        "zh": ("{}是什么颜色?", "{}图标是什么颜色的?", "{}的颜色是什么?", "告诉我{}的颜色"),
        "en": (
            "What colour is {}?",
            "What color is the {} icon?",
            "Which colour does {} have?",
            "Tell me the colour of {}",
        ),
    },
    "where": {
        "zh": ("{}在哪里?", "{}在屏幕的什么位置?", "找一下{}在哪", "请问{}在哪儿?"),
        "en": ("Where is {}?", "Where is the {} icon?", "Find {} on the screen", "Where can I find {}?"),
    },
    "exists": {
        "zh": ("屏幕上有{}吗?", "有没有{}?", "能看到{}吗?", "这里有{}吗?"),
        "en": ("Is there {} on the screen?", "Do you see {}?", "Can you see the {} icon?", "Is {} here?"),
    },
    "count": {
        "zh": ("屏幕上有几个应用?", "一共有多少个图标?", "有几个图标?", "数一数有多少个应用"),
        "en": (
            "How many apps are on the screen?",
            "How many icons are there?",
            "Count the icons",
            "How many apps do you see?",
        ),
    },
    "which_app": {
        "zh": ("现在打开的是什么应用?", "这是哪个应用?", "当前是什么应用?", "屏幕上是哪个应用的页面?"),
        "en": ("Which app is open?", "What app is this?", "Which app am I in?", "What is the current app?"),
    },
    "switch_state": {
        "zh": ("{}开了吗?", "{}是打开的吗?", "{}现在是开还是关?", "{}打开了没有?"),
        "en": ("Is {} on?", "Is {} turned on?", "Is {} enabled?", "Tell me whether {} is on"),
    },
    "turn_on": {
        "zh": ("打开{}开关", "把{}打开", "开启{}", "请开启{}"),
        "en": ("Turn on {}", "Switch on {}", "Enable {}", "Please turn on {}"),
    },
    "turn_off": {
        "zh": ("关闭{}", "把{}关掉", "关掉{}", "请关闭{}"),
        "en": ("Turn off {}", "Switch off {}", "Disable {}", "Please turn off {}"),
    },
    "back": {
        "zh": ("返回", "返回上一页", "回到上一页", "退回去"),
        "en": ("Go back", "Back", "Return to the previous page", "Please go back"),
    },
    "confirm": {
        "zh": ("点击确定", "确定", "点确定按钮", "请按确定"),
        "en": ("Tap OK", "Press OK", "Confirm", "Please tap OK"),
    },
    "cancel": {
        "zh": ("点击取消", "取消", "点取消按钮", "请按取消"),
        "en": ("Tap Cancel", "Press Cancel", "Cancel it", "Please tap Cancel"),
    },
    "type": {
        "zh": ("输入{}", "请输入{}", "帮我输入{}", "打字{}"),
        "en": ("Type {}", "Please type {}", "Enter {}", "Write {}"),
    },
}

TYPED: dict[Language, tuple[str, ...]] = {
    "zh": ("你好", "早上好", "晚上见", "谢谢", "明天见", "我在路上", "生日快乐", "马上到", "今天天气不错", "晚安"),
    "en": (
        "hello",
        "good morning",
        "see you tonight",
        "thank you",
        "see you tomorrow",
        "on my way",
        "happy birthday",
        "coming soon",
        "nice weather today",
        "good night",
    ),
}

SLOTS: dict[str, str] = {
    "open": "app",
    "colour": "app",
    "where": "app",
    "exists": "app",
    "switch_state": "setting",
    "turn_on": "setting",
    "turn_off": "setting",
    "type": "text",
}


def templates(intent: str, language: Language, split: Split) -> tuple[str, ...]:
    """Return the wordings of `intent`: all but the last for training, the last for held-out cases."""
    every = TEMPLATES[intent][language]
    return every[:-HELD_OUT_TEMPLATES] if split == "train" else every[-HELD_OUT_TEMPLATES:]


def fillers(intent: str, language: Language) -> tuple[str, ...]:
    """Return what may stand in the slot of `intent` (one empty string when it has no slot)."""
    slot = SLOTS.get(intent)
    if slot == "app":
        return tuple(name[language] for name in APPS.values())
    if slot == "setting":
        return tuple(name[language] for name in SETTINGS.values())
    return TYPED[language] if slot == "text" else ("",)


def sentences(split: Split) -> list[tuple[Language, str]]:
    """Return every (language, sentence) that the templates of `split` and the names make."""
    return [
        (language, template.format(filler))
        for language in LANGUAGES
        for intent in TEMPLATES
        for template in templates(intent, language, split)
        for filler in fillers(intent, language)
    ]
