"""What people say to a phone: sentence templates per intent and language, split by wording.

A template's `{}` takes the name of an app, a setting or a text to type. The last entries of every
table are held out: no generator of the train split ever uses them.
"""

import re
from functools import cache
from typing import Literal

import numpy as np

from autoglm.training.data.catalog import APPS, LANGUAGES, SETTINGS, Language, Split
from autoglm.training.data.lexicon import TYPED

HELD_OUT_TEMPLATES, HELD_OUT_TYPED, HELD_OUT_DICTATE = 3, 10, 2
POLITE_SHARE = 0.3
FULL_WIDTH = str.maketrans(",?!", "\uff0c\uff1f\uff01")

TEMPLATES: dict[str, dict[Language, tuple[str, ...]]] = {
    "open": {
        "zh": (
            "打开{}", "请打开{}", "帮我打开{}", "点击{}", "进入{}", "我想用{}", "点开{}", "把{}打开", "启动{}", "去{}",
            "运行{}", "点一下{}图标", "麻烦你打开{}", "我要看{}", "能帮我打开{}吗?", "切换到{}", "给我打开{}应用",
            "{}打开一下", "现在打开{}", "我想打开{},请帮我点一下", "带我去{}", "用一下{}", "请点击屏幕上的{}图标",
            "打开{}这个应用", "跳到{}", "点一下{}", "帮我启动{}", "我要用{}应用",
        ),
        "en": (
            "Open {}", "Please open {}", "Tap {}", "Tap the {} icon", "Go to {}", "I want to use {}", "Launch {}",
            "Open the {} app", "Can you open {}?", "Could you open {} for me?", "Take me to {}", "Run {}",
            "Press the {} icon", "I would like to open {}", "Open up {}", "Bring up {}", "Switch to {}",
            "I need the {} app", "Let's go to {}", "{}, open it", "Click on {}", "Please start the {} app for me",
            "Get me into {}", "Touch the {} icon", "Would you open the {} app, please?", "Start {}",
            "Please tap the {} icon", "I want to open {}",
        ),
    },
    "colour": {
        "zh": (
            "{}是什么颜色?", "{}图标是什么颜色的?", "{}的颜色是什么?", "告诉我{}的颜色", "{}什么颜色",
            "请问{}是什么颜色?", "{}图标的颜色是什么?", "看看{}是什么颜色", "你看{}是什么颜色的?",
            "屏幕上的{}是什么颜色?", "{}是哪种颜色?", "说一下{}的颜色", "帮我看一下{}图标是什么颜色",
            "什么颜色的图标是{}?", "{}这个应用是什么颜色?", "我想知道{}的颜色", "{}图标用的是哪种颜色?",
            "{}的图标是红色还是别的颜色?", "颜色是什么,{}的图标", "你能告诉我{}是什么颜色吗?",
            "{}现在显示的是什么颜色?", "这里的{}是什么颜色?", "{}长什么颜色?", "回答我,{}是什么颜色",
            "请告诉我{}图标的颜色", "{}应用是什么颜色的?", "你知道{}的颜色吗?",
        ),
        "en": (
            "What colour is {}?", "What color is the {} icon?", "Which colour does {} have?", "Tell me the color of {}",
            "{} is what colour?", "What is the colour of {}?", "What's the color of the {} icon?", "Which color is {}?",
            "The {} icon has what colour?", "Do you know the colour of {}?", "Look at {} and tell me its color",
            "Name the colour of the {} icon", "What colour does the {} icon have?", "Can you tell me what color {} is?",
            "I want to know the colour of {}", "{}, which colour is it?", "Say the color of {}",
            "What color is {} on the screen?", "Please tell me which colour the {} icon is",
            "In which colour is {} drawn?", "What color do you see on the {} icon?", "Color of {}?",
            "Of what colour is the {} app?", "Is {} red, blue or another colour?",
            "Could you tell me the color of the {} app?", "Tell me the colour of {}", "What colour is the {} app?",
            "Which color does the {} icon have?",
        ),
    },
    "where": {
        "zh": (
            "{}在哪里?", "{}在屏幕的什么位置?", "找一下{}在哪", "请问{}在哪儿?", "{}在哪", "{}在哪个位置?",
            "告诉我{}在哪里", "{}图标在哪里?", "帮我找{}", "我找不到{},它在哪里?", "{}的位置在哪里?",
            "看看{}在什么地方", "{}在屏幕上的哪个地方?", "哪里有{}?", "{}放在哪里了?", "你能告诉我{}的位置吗?",
            "说一下{}的位置", "从哪里可以找到{}?", "{}在左边还是右边?", "我想知道{}在什么位置", "去哪里找{}?",
            "在屏幕上找一下{}", "{}在上面还是下面?", "{}这个图标在哪一块?", "帮我看看{}在哪里",
            "{}图标在屏幕的哪个位置?", "请告诉我{}在哪",
        ),
        "en": (
            "Where is {}?", "Where is the {} icon?", "Find {} on the screen", "Where's {}?", "Tell me where {} is",
            "In which part of the screen is {}?", "Show me where {} is", "Whereabouts is the {} icon?", "Locate {}",
            "Locate the {} icon for me", "I can't find {}, where is it?", "Can you tell me where {} is?",
            "What is the position of {}?", "On which side is {}?", "Where do I find the {} app?",
            "Where on the screen is {}?", "Please find {} for me", "{}, where is it?", "At which place is the {} icon?",
            "I am looking for {}", "Is {} on the left or on the right?", "Which part of the screen has {}?",
            "Where can I see the {} icon?", "Help me find the {} icon", "Do you know where {} is?",
            "Where can I find {}?", "Tell me where the {} icon is", "Where is the {} app on the screen?",
        ),
    },
    "exists": {
        "zh": (
            "屏幕上有{}吗?", "有没有{}?", "能看到{}吗?", "这里有{}吗?", "有{}吗", "看得到{}吗?", "你看见{}了吗?",
            "屏幕上有没有{}图标?", "能不能找到{}?", "这一页有{}吗?", "{}在不在屏幕上?", "{}在这里吗?", "请问有{}吗?",
            "这个页面上有没有{}?", "找得到{}吗?", "看看有没有{}", "帮我看看屏幕上有没有{}", "我想知道这里有没有{}",
            "主屏幕上有{}吗?", "这些图标里有{}吗?", "{}有没有?", "你能看见{}图标吗?", "告诉我有没有{}", "桌面上有{}吗?",
            "是不是有{}?", "这里有没有{}图标?", "你能看到{}吗?", "屏幕上能找到{}吗?",
        ),
        "en": (
            "Is there {} on the screen?", "Do you see {}?", "Can you see the {} icon?", "Is {} here?",
            "Is the {} icon there?", "Does the screen show {}?", "Have I got {} on this page?",
            "Is {} among the icons?", "Do I have {} here?", "Tell me if {} is on the screen", "Can {} be seen?",
            "Is there a {} icon?", "{}, is it here?", "Are you able to see {}?", "Check if there is {}",
            "Does this page have {}?", "Is {} on the home screen?", "Any {} here?", "Please check whether {} is there",
            "I wonder if {} is on the screen", "Does {} appear on the screen?", "Is there an icon for {}?",
            "See if {} is here", "Could you check if the {} icon is on the screen?", "Is {} shown?",
            "Can you see {} on the screen?", "Do you see the {} icon here?", "Is there {} on this page?",
        ),
    },
    "count": {
        "zh": (
            "屏幕上有几个应用?", "一共有多少个图标?", "有几个图标?", "数一数有多少个应用", "有多少应用", "几个应用?",
            "这里有多少个应用?", "数一下图标", "帮我数一下应用", "告诉我有几个应用", "你看到几个图标?", "图标有多少个?",
            "应用的数量是多少?", "屏幕上的应用有几个?", "请数一数屏幕上的图标", "总共有几个应用?", "一共几个图标?",
            "这一页有多少个应用?", "我想知道有多少个图标", "应用一共有几个?", "主屏幕上有多少个应用?",
            "你能数一下有几个图标吗?", "这个页面上有几个图标?", "图标的个数是多少?", "说一下应用的数量",
            "这里有几个图标?", "屏幕上一共有多少个应用?", "帮我数一数有几个应用",
        ),
        "en": (
            "How many apps are on the screen?", "How many icons are there?", "Count the icons", "How many apps?",
            "Count the apps on the screen", "What is the number of apps?", "Tell me how many icons you see",
            "How many icons do you see?", "Can you count the apps?", "How many apps are there in total?",
            "Number of icons?", "Give me the number of apps", "How many apps are shown here?",
            "How many icons does the screen have?", "Please count all the icons", "How many apps does this page have?",
            "I want to know how many apps there are", "Count all apps for me", "What's the total number of icons?",
            "How many icons can you count?", "How many icons are on this page?",
            "Could you count the icons on the screen?", "How many apps can you see?", "Apps on the screen, how many?",
            "Say how many icons there are", "How many apps do you see?", "Tell me how many apps are on the screen",
            "Can you count the icons here?",
        ),
    },
    "which_app": {
        "zh": (
            "现在打开的是什么应用?", "这是哪个应用?", "当前是什么应用?", "屏幕上是哪个应用的页面?", "我在哪个应用里?",
            "这是什么应用", "现在在哪个应用?", "打开的是哪个应用?", "当前应用是什么?", "告诉我现在是哪个应用",
            "这个页面是什么应用的?", "现在是哪个页面?", "这是什么页面?", "我打开了什么应用?", "正在用的是什么应用?",
            "看看现在是什么应用", "请问这是什么应用?", "当前页面属于哪个应用?", "你看到的是哪个应用?",
            "现在显示的是哪个应用?", "我正在看哪个应用?", "屏幕上打开了哪个应用?", "说一下当前的应用",
            "帮我看看这是哪个应用的页面", "我现在用的是哪个应用?", "现在是什么应用?", "请告诉我这是哪个应用",
            "屏幕上打开的是什么应用?",
        ),
        "en": (
            "Which app is open?", "What app is this?", "Which app am I in?", "What is open now?",
            "Which app is on the screen?", "What's this app?", "Tell me which app is open", "What app am I using?",
            "Which app do you see?", "Where am I now, in which app?", "Which page is this?", "What screen is this?",
            "Name the app on the screen", "What is the current page?", "Which app is running?", "In which app are we?",
            "The open app is which one?", "Can you tell me which app this is?", "What app is on the screen right now?",
            "Which app does this page belong to?", "I want to know what app is open", "This is which app?",
            "What is the app called that is open?", "Please tell me what app I am in", "What app is currently open?",
            "What is the current app?", "Tell me what app this is", "Which app is open right now?",
        ),
    },
    "switch_state": {
        "zh": (
            "{}开了吗?", "{}是打开的吗?", "{}现在是开还是关?", "{}开着吗?", "{}有没有开?", "{}关了吗?", "{}关着吗?",
            "{}是开着还是关着?", "{}的状态是什么?", "请问{}开了没有?", "看看{}开了没", "{}是什么状态?",
            "告诉我{}是不是开着", "我的{}打开了吗?", "{}开关是开的吗?", "现在{}是开着的吗?", "帮我看一下{}有没有打开",
            "{}是不是打开了?", "有没有打开{}?", "{}是关闭的吗?", "我想知道{}开没开", "你看{}是开还是关",
            "{}已经开启了吗?", "{}的开关是什么状态?", "{}打开了没有?", "{}现在开着吗?", "请告诉我{}是开还是关",
        ),
        "en": (
            "Is {} on?", "Is {} turned on?", "Is {} enabled?", "Is {} off?", "Is {} on or off?", "Is {} switched on?",
            "Is {} turned off?", "What is the state of {}?", "Do I have {} on?", "Is my {} on?", "Tell me if {} is on",
            "{}, is it on?", "Is {} active?", "Has {} been turned on?", "Check if {} is on",
            "Can you check whether {} is off?", "Is the {} switch on?", "How is {} set?",
            "Please tell me if {} is enabled", "I want to know whether {} is on", "Is {} on right now?",
            "Did I turn on {}?", "What does the {} switch say?", "Is {} disabled?", "Is the switch for {} on or off?",
            "Tell me whether {} is on", "Is the {} switch turned on?", "Is {} on or off now?",
        ),
    },
    "turn_on": {
        "zh": (
            "打开{}开关", "把{}打开", "开启{}", "打开{}", "把{}开一下", "开{}", "启用{}", "请打开{}", "帮我开启{}",
            "帮我把{}打开", "我要开{}", "我想打开{}", "{}打开", "开一下{}", "麻烦你打开{}", "能帮我打开{}吗?",
            "把{}的开关打开", "让{}开着", "请把{}开关打开", "给我把{}开了", "现在开启{}", "我需要{},请打开",
            "{}没开,帮我打开", "打开{}功能", "可以帮我开启{}吗?", "请开启{}", "帮我打开{}开关", "我想把{}打开",
        ),
        "en": (
            "Turn on {}", "Switch on {}", "Enable {}", "Turn {} on", "Switch {} on", "Activate {}", "I want {} on",
            "Put {} on", "Can you turn on {}?", "Could you switch {} on for me?", "Set {} to on", "Make sure {} is on",
            "I need {} turned on", "Get {} going", "Please enable {}", "Help me turn on {}", "Let's turn {} on",
            "Flip the {} switch on", "{} on", "I would like {} enabled", "Turn on the {} switch",
            "Would you turn {} on, please?", "{} should be on", "I want to have {} switched on", "Please turn on {}",
            "Can you enable {}?", "I want to turn {} on",
        ),
    },
    "turn_off": {
        "zh": (
            "关闭{}", "把{}关掉", "关掉{}", "把{}关闭", "关{}", "停用{}", "把{}关了", "帮我关闭{}", "帮我把{}关掉",
            "我要关{}", "我想关闭{}", "{}关掉", "关一下{}", "麻烦你关掉{}", "能帮我关掉{}吗?", "把{}的开关关上",
            "不要开{}", "请把{}开关关掉", "给我把{}关了", "现在关闭{}", "我不需要{},请关掉", "{}还开着,帮我关掉",
            "关闭{}功能", "可以帮我关闭{}吗?", "别开着{}了", "请关闭{}", "帮我关掉{}开关", "我想把{}关掉",
        ),
        "en": (
            "Turn off {}", "Switch off {}", "Disable {}", "Turn {} off", "Switch {} off", "Deactivate {}",
            "I want {} off", "Can you turn off {}?", "Could you switch {} off for me?", "Set {} to off",
            "Make sure {} is off", "I need {} turned off", "Stop {}", "Please disable {}", "Help me turn off {}",
            "Let's turn {} off", "Flip the {} switch off", "{} off", "I do not need {}, turn it off",
            "Turn off the {} switch", "Would you turn {} off, please?", "{} should be off",
            "I want to have {} switched off", "Shut off {}", "I would like {} disabled", "Please turn off {}",
            "Can you disable {}?", "I want to turn {} off",
        ),
    },
    "back": {
        "zh": (
            "返回", "返回上一页", "回到上一页", "退回去", "后退", "回去", "返回上一个页面", "回到前一页",
            "退出这个页面", "上一页", "往回走", "请返回", "帮我返回上一页", "我要回去", "退一步", "带我回到上一页",
            "请退回上一个页面", "点返回", "能返回上一页吗?", "按返回键", "请回到上一页", "帮我退回去",
            "我要返回上一个页面",
        ),
        "en": (
            "Go back", "Back", "Return to the previous page", "Back to the previous page", "Take me back",
            "Go to the previous screen", "Return", "One page back", "Leave this page", "Go back one step", "Press back",
            "Get back to the last page", "I want to go back", "Can you go back?", "Step back", "Back up one page",
            "Bring me back", "Go back to where I was", "Please return to the last screen", "Please go back",
            "I want to return to the previous page", "Take me back to the last screen",
        ),
    },
    "confirm": {
        "zh": (
            "点击确定", "点确定按钮", "点确定", "按确定", "按一下确定", "选择确定", "选确定", "我确定,点吧",
            "请点击确定", "帮我点确定", "点击确定按钮", "在对话框里点确定", "请选择确定", "同意,点确定", "好的,按确定",
            "确定按钮点一下", "帮我点一下确定按钮", "麻烦点一下确定", "能点一下确定吗?", "我同意,请点击确定按钮",
            "请按确定", "点一下确定", "帮我选择确定",
        ),
        "en": (
            "Tap OK", "Press OK", "Confirm", "Choose OK", "Hit OK", "Select OK", "Click OK", "Tap the OK button",
            "Press the OK button", "Confirm it", "Yes, tap OK", "Accept", "I agree, press OK", "Can you tap OK?",
            "Please choose OK", "Click the OK button for me", "Confirm this dialog", "Go ahead and tap OK",
            "Please confirm", "Please tap OK", "Yes, press the OK button", "Can you press OK?",
        ),
    },
    "cancel": {
        "zh": (
            "点击取消", "取消", "点取消按钮", "点取消", "按取消", "按一下取消", "选择取消", "选取消", "不要了,点取消",
            "请点击取消", "帮我点取消", "点击取消按钮", "在对话框里点取消", "请选择取消", "算了,按取消",
            "我不同意,点取消", "取消按钮点一下", "帮我取消", "取消吧", "麻烦点一下取消", "能点一下取消吗?", "请按取消",
            "点一下取消", "帮我选择取消",
        ),
        "en": (
            "Tap Cancel", "Press Cancel", "Cancel it", "Cancel", "Choose Cancel", "Hit Cancel", "Select Cancel",
            "Click Cancel", "Tap the Cancel button", "Press the Cancel button", "No, tap Cancel",
            "I changed my mind, cancel", "I do not agree, press Cancel", "Can you tap Cancel?", "Please choose Cancel",
            "Click the Cancel button for me", "Cancel this dialog", "Go ahead and tap Cancel", "Please cancel",
            "Do not do it, press Cancel", "Please tap Cancel", "No, press the Cancel button", "Can you press Cancel?",
        ),
    },
    "type": {
        "zh": (
            "输入{}", "请输入{}", "帮我输入{}", "在输入框里输入{}", "打上{}", "把{}输进去", "填写{}", "填上{}",
            "打字{}", "输入文字{}", "在框里写上{}", "帮我打{}这几个字", "请在这里输入{}", "我要输入{}", "把{}写进去",
            "输入这句话,{}", "写上{}", "麻烦你输入{}", "请帮我填写{}", "文字内容是{},请输入", "请在输入框里写上{}",
            "帮我填上{}", "我要打字,输入{}",
        ),
        "en": (
            "Type {}", "Please type {}", "Enter {}", "Write {}", "Type the words {}", "Type in {}", "Enter the text {}",
            "Put in {}", "Fill in {}", "Type {} in the box", "Enter {} here", "Can you type {}?",
            "Could you type {} for me?", "Type this, {}", "I want to type {}", "Input {}", "Key in {}",
            "Put {} in the text field", "Please enter {}", "Write {} in the field", "Write this down, {}",
            "Please write {} here", "Can you enter {}?", "Type {} in the text field",
        ),
    },
}  # fmt: skip

# For training only and outside the tokenizer's corpus. A held-out wording is a fair question only if each of its words
# is met in training: nothing above said "Start" or, in small letters, "write" and "tap".
FURTHER: dict[tuple[str, Language], tuple[str, ...]] = {
    ("open", "en"): ("Start the {} app", "Start up {}", "I want to tap {}", "Let's start {}"),
    ("colour", "en"): ("Tell me what colour {} is",),
    ("type", "en"): ("I want to write {}", "Can you write {} for me?"),
}

DICTATE: dict[Language, tuple[str, ...]] = {
    "zh": (
        "转写这段语音。", "听写", "这段语音说了什么?", "请把语音转成文字。", "把这段话写下来", "录音里说了什么?",
        "帮我听写这段录音", "写下你听到的内容", "转成文字", "你听到了什么?", "请转写录音", "这个人说了什么?",
        "把录音变成文字", "请写出这段语音的内容", "语音转文字", "请把这段录音写下来", "这段录音里说了什么?",
    ),
    "en": (
        "Transcribe this recording.", "Transcribe", "What is said here?", "Write down what you hear.",
        "What does the recording say?", "Turn this speech into text", "Transcribe the audio, please.",
        "What did the speaker say?", "Write out the recording", "Give me a transcript", "What do you hear?",
        "Speech to text", "Put these words into writing", "Please transcribe what is said.",
        "Can you write down this recording?", "Write down what the speaker said",
        "Please turn the recording into text.",
    ),
}  # fmt: skip

Kind = Literal["question", "command"]
BEFORE: dict[Kind, dict[Language, tuple[str, ...]]] = {
    "question": {
        "zh": ("请问", "你好,", "嘿,", "请问一下,", "麻烦问一下,", "你看,", "您好,请问"),
        "en": ("Hey, ", "Hi, ", "Hello, ", "Excuse me, ", "Quick question, ", "OK, ", "Sorry, "),
    },
    "command": {
        "zh": ("请", "麻烦你", "你好,", "嘿,", "现在", "好的,", "您好,请"),
        "en": ("Hey, ", "Please, ", "Hi, ", "Hello, ", "OK, ", "Now, ", "Excuse me, "),
    },
}
AFTER: dict[Kind, dict[Language, tuple[str, ...]]] = {
    "question": {
        "zh": (",谢谢", ",谢谢你", ",看一下", ",帮我看看", ",麻烦了", ",多谢"),
        "en": (", please", " now", " right now", " at the moment"),
    },
    "command": {
        "zh": (",谢谢", ",好吗?", ",可以吗?", ",快一点", ",麻烦了", ",谢谢你"),
        "en": (", please", ", thanks", " now", " right now", ", thank you"),
    },
}
# Wordings with one of these take no polite word: they have one, say when, or would read oddly with one.
SAID: dict[Language, tuple[str, ...]] = {
    "zh": (
        *("请", "麻烦", "帮", "谢", "你好", "给我", "现在", "告诉", "你看", "我", "正在", "好的", "看看", "说一下"),
        *("说说", "数一", "回答", "找一下", "介绍", "算了", "不要了", "按钮点", "{}打开", "{}关掉"),
    ),
    "en": ("please", "thank", "hey", "hello", "hi,", "yes,", "no,", " now", "ok, ", "current", "go ahead"),
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


def part(every: tuple[str, ...], held_out: int, split: Split) -> tuple[str, ...]:
    """Return all but the last `held_out` for training, and those for held-out cases."""
    return every[:-held_out] if split == "train" else every[-held_out:]


def as_heard(text: str) -> str:
    """Return `text` with one spelling of what sounds alike: no recording tells color from colour."""
    return re.sub("(?<=[Cc])olor", "olour", text)


@cache
def templates(intent: str, language: Language, split: Split) -> tuple[str, ...]:
    """Return the wordings of `intent`; none for training that sounds like a held-out one."""
    every = TEMPLATES[intent][language]
    held_out = part(every, HELD_OUT_TEMPLATES, "heldout")
    if split == "heldout":
        return held_out
    sounds = set(map(as_heard, held_out))
    known = (*part(every, HELD_OUT_TEMPLATES, "train"), *FURTHER.get((intent, language), ()))
    return tuple(wording for wording in known if as_heard(wording) not in sounds)


def typed(language: Language, split: Split) -> tuple[str, ...]:
    """Return the texts that people ask to type."""
    return part(TYPED[language], HELD_OUT_TYPED, split)


def dictate(language: Language, split: Split) -> tuple[str, ...]:
    """Return the orders to write down what a recording says."""
    return part(DICTATE[language], HELD_OUT_DICTATE, split)


def polite(template: str, kind: Kind, language: Language, split: Split, rng: np.random.Generator) -> str:
    """Return `template`, now and then with a polite word before or after it.

    Call it before the slot is filled: the first letter may become small, which a name's must not.
    Held-out cases draw from all of BEFORE and AFTER, training never draws the last of each.
    """
    lower = template.lower()
    asks = kind == "command" and template.endswith("?")  # "Can you open it?" is polite as it stands
    if rng.random() >= POLITE_SHARE or asks or any(word in lower for word in SAID[language]):
        return template
    end = -1 if split == "train" else None
    before, after = (table[kind][language][:end] for table in (BEFORE, AFTER))
    if rng.random() < 0.5:
        # "I" and "OK" keep their capitals.
        first = template[0].lower() if template[1:2].islower() else template[0]
        return before[rng.integers(len(before))] + first + template[1:]
    body, suffix = template.rstrip("?.!"), after[rng.integers(len(after))]
    return body + suffix + (template[len(body) :] if language == "en" else "")


def full_width(words: str) -> str:
    """Return `words` with the punctuation that a Chinese keyboard gives."""
    return words.translate(FULL_WIDTH)


def fillers(intent: str, language: Language, split: Split) -> tuple[str, ...]:
    """Return what may stand in the slot of `intent` (one empty string when it has no slot)."""
    slot = SLOTS.get(intent)
    if slot == "app":
        return tuple(name[language] for name in APPS.values())
    if slot == "setting":
        return tuple(name[language] for name in SETTINGS.values())
    return typed(language, split) if slot == "text" else ("",)


def sentences(split: Split) -> list[tuple[Language, str]]:
    """Return every (language, sentence) that the templates of `split` and the names make."""
    return [
        (language, template.format(filler))
        for language in LANGUAGES
        for intent in TEMPLATES
        for template in templates(intent, language, split)
        for filler in fillers(intent, language, split)
    ]
