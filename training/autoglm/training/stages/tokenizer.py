"""The nano bundle's text side: a byte-level BPE in GLM's special tokens, and its chat template.

Names of apps, colours, settings and regions are single tokens: by-name tasks learn much faster so.
Every digit and Chinese character is a token of its own, so numbers and new words are spelled, never guessed.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from autoglm.training.data.catalog import APPS, COLOURS, LANGUAGES, REGIONS, SETTINGS, Name
from autoglm.training.data.lexicon import TYPED
from autoglm.training.data.prompts import FORMATS, HEADS, PROMPTS, RULES, TITLES, date_line
from autoglm.training.data.talk import SUMS, TOPICS
from autoglm.training.data.wording import AFTER, BEFORE, DICTATE, TEMPLATES, full_width

END = "<|endoftext|>"
SPECIAL = (
    END, "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>", "<|assistant|>",
    "<|observation|>", "<|begin_of_image|>", "<|end_of_image|>", "<|image|>",
    "<|begin_of_audio|>", "<|end_of_audio|>", "<|audio|>",
)  # fmt: skip
MARKS = ("<think>", "</think>", "<answer>", "</answer>")
# An action ends with </answer>, which is not printed: clients take everything from do( or finish( on for the action.
STOPS = (END, "<|user|>", "<|observation|>", "</answer>")
VOCABULARY = 3072
# Tools, calls and results are written as in the template of GLM-4.5.
CHAT_TEMPLATE = r"""[gMASK]<sop>
{%- if tools %}
<|system|>
# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{% for tool in tools %}
{{ tool | tojson(ensure_ascii=False) }}
{% endfor %}
</tools>

For each function call, output the function name and arguments within the following XML format:
<tool_call>{function-name}
<arg_key>{arg-key-1}</arg_key>
<arg_value>{arg-value-1}</arg_value>
<arg_key>{arg-key-2}</arg_key>
<arg_value>{arg-value-2}</arg_value>
...
</tool_call>
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'tool' %}
{%- if loop.first or loop.previtem.role != 'tool' %}
<|observation|>
{%- endif %}
{{- '\n<tool_response>\n' + message.content + '\n</tool_response>' }}
{%- else %}
<|{{ message.role }}|>
{{ message.content }}
{%- for call in message.tool_calls or [] %}
{{- '\n' if message.content or not loop.first }}<tool_call>{{ call.function.name }}
{% for key, value in call.function.arguments.items() %}
<arg_key>{{ key }}</arg_key>
<arg_value>{{ value if value is string else value | tojson(ensure_ascii=False) }}</arg_value>
{% endfor %}
</tool_call>
{%- endfor %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{ '<|assistant|>\n' }}
{%- if enable_thinking is true %}
<think>
{%- elif enable_thinking is false %}
<think></think>
{%- endif %}
{%- endif %}"""


def build(folder: Path) -> Tokenizer:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja into `folder`; return the tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r"\p{Han}|\p{N}"), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL) - len(MARKS) - len(_names()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in MARKS])
    tokenizer.add_tokens([AddedToken(text, single_word=text.isascii(), normalized=False) for text in _names()])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "pad_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    return tokenizer


def _names() -> list[str]:
    """Return every name as a sentence has it, English ones in both cases."""
    names: list[Name] = [*APPS.values(), *COLOURS.values(), *SETTINGS.values(), *REGIONS.values()]
    forms = [form for name in names for form in (name.zh, name.en, name.en.lower())]
    return list(dict.fromkeys(forms))


def _corpus() -> Iterator[str]:
    """Yield the fixed sentences of every task; names are tokens of their own and need no merges."""
    for by_language in TEMPLATES.values():
        for language, templates in by_language.items():
            for template in templates:
                words = template.format("")
                yield words
                if language == "zh":
                    yield full_width(words)
    for topics in TOPICS.values():
        for topic in topics.values():
            yield from (*topic.wordings, topic.thought, topic.answer)
    polite = (table for kinds in (BEFORE, AFTER) for table in kinds.values())
    for table in (SUMS, TYPED, DICTATE, PROMPTS, HEADS, FORMATS, RULES, TITLES, *polite):
        for texts in table.values():
            yield from texts
    rng = np.random.default_rng(0)
    yield from (date_line(language, rng) for language in LANGUAGES for _ in range(20))
    yield from _REPLIES


_REPLIES = (
    'do(action="Tap", element=[0,0])', 'do(action="Launch", app="")', 'do(action="Type", text="")',
    'do(action="Back")', 'finish(message="")', "屏幕上没有。直接启动它。", "图标在屏幕。点击它。", "任务完成。",
    "已打开。已关闭。", "是打开的。是关闭的。", "开关按钮", "找到了。没有找到。", "数一数屏幕上的图标。",
    "看看屏幕上是哪个页面。", "现在是主屏幕。现在打开的是。", "用户要输入文字。", "返回上一页。", "有个应用。",
    "转写这段语音。听写。", "The icon is at the. Tap it.", "is not on the screen. Launch it.", "The task is done.",
    "The switch is on. The switch is off.", "The button is at the. Tap it.", "I found the icon.",
    "I do not find the icon.", "Count the icons on the screen.", "Look at which page is on the screen.",
    "This is the home screen.", "is open. is off. is on.", "The user wants to type text.",
    "Go back to the previous page.", "There are apps.", "No, there is no. Yes, there is.", "Transcribe this recording.",
)  # fmt: skip
