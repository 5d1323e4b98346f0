"""The closed world of the nano bundle: apps, colours, settings and regions by name.

Keys are the English snake_case names that generators, labels and tests share; `Name` carries what
a person says in Chinese and in English.
"""

from dataclasses import dataclass
from typing import Literal

Language = Literal["zh", "en"]
LANGUAGES: tuple[Language, ...] = ("zh", "en")
Split = Literal["train", "heldout"]


@dataclass(frozen=True, slots=True)
class Name:
    """What a thing is called in each language."""

    zh: str
    en: str

    def __getitem__(self, language: Language) -> str:
        return self.zh if language == "zh" else self.en


APPS: dict[str, Name] = {
    "camera": Name("相机", "Camera"),
    "gallery": Name("相册", "Gallery"),
    "music": Name("音乐", "Music"),
    "maps": Name("地图", "Maps"),
    "mail": Name("邮件", "Mail"),
    "calendar": Name("日历", "Calendar"),
    "clock": Name("时钟", "Clock"),
    "calculator": Name("计算器", "Calculator"),
    "weather": Name("天气", "Weather"),
    "settings": Name("设置", "Settings"),
    "phone": Name("电话", "Phone"),
    "messages": Name("信息", "Messages"),
    "browser": Name("浏览器", "Browser"),
    "notes": Name("备忘录", "Notes"),
    "files": Name("文件", "Files"),
    "contacts": Name("通讯录", "Contacts"),
    "video": Name("视频", "Video"),
    "store": Name("商店", "Store"),
    "health": Name("健康", "Health"),
    "wallet": Name("钱包", "Wallet"),
    "recorder": Name("录音机", "Recorder"),
    "books": Name("阅读", "Books"),
    "games": Name("游戏", "Games"),
    "compass": Name("指南针", "Compass"),
}

COLOURS: dict[str, Name] = {
    "red": Name("红色", "red"),
    "orange": Name("橙色", "orange"),
    "yellow": Name("黄色", "yellow"),
    "green": Name("绿色", "green"),
    "blue": Name("蓝色", "blue"),
    "purple": Name("紫色", "purple"),
    "pink": Name("粉色", "pink"),
    "gray": Name("灰色", "gray"),
}

SETTINGS: dict[str, Name] = {
    "wifi": Name("无线网络", "Wi-Fi"),
    "bluetooth": Name("蓝牙", "Bluetooth"),
    "airplane": Name("飞行模式", "Airplane mode"),
    "dark": Name("深色模式", "Dark mode"),
    "location": Name("定位", "Location"),
    "hotspot": Name("热点", "Hotspot"),
    "dnd": Name("勿扰模式", "Do not disturb"),
    "rotation": Name("自动旋转", "Auto rotate"),
}

REGIONS: dict[tuple[int, int], Name] = {
    (0, 0): Name("左上方", "top left"),
    (0, 1): Name("正上方", "top center"),
    (0, 2): Name("右上方", "top right"),
    (1, 0): Name("左边", "left"),
    (1, 1): Name("中间", "center"),
    (1, 2): Name("右边", "right"),
    (2, 0): Name("左下方", "bottom left"),
    (2, 1): Name("正下方", "bottom center"),
    (2, 2): Name("右下方", "bottom right"),
}


def region(x: float, y: float) -> Name:
    """Return the name of the ninth of the screen that holds the point (x, y), each in [0, 1000)."""
    return REGIONS[int(y * 3 // 1000), int(x * 3 // 1000)]
