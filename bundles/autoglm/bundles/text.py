"""The text side of a decoder: media tokens in its tokenizer, and a chat template that the mesh can use."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from jinja2 import TemplateError
from tokenizers import AddedToken, Tokenizer

from autoglm.common.bundle import BundleError, read_json
from autoglm.fusion.compose import Composer
from autoglm.fusion.gcma.layout import GCMA_LAYOUT
from autoglm.fusion.prompt import Media, Prompt, PromptMessage

_MARKS = ("alpha", "beta", "gamma", "delta")


def add_media_tokens(source: Path, target: Path, rows: int) -> dict[str, int]:
    """Write `source`/tokenizer.json into `target` with all media tokens; return the tokens added, with their ids.

    New tokens take the ids after the last one. GLM pads its vocabulary, so these ids already have rows in the embedding
    and no weight changes. Raises BundleError when the embedding has too few `rows`.
    """
    tokenizer = _tokenizer(source)
    missing = _missing(tokenizer)
    if not missing:
        shutil.copyfile(source / "tokenizer.json", target / "tokenizer.json")
        return {}
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in missing])
    vocabulary = tokenizer.get_vocab()
    added = {text: vocabulary[text] for text in missing}
    if max(added.values()) >= rows:
        raise BundleError(
            f"the tokenizer lacks {', '.join(missing)}, and the decoder's embedding of {rows} rows is too small for"
            " them: enlarge it with transformers' resize_token_embeddings, save, and use that folder"
        )
    tokenizer.save(str(target / "tokenizer.json"))
    return added


def chat_template(folder: Path) -> str:
    """Return the model's own chat template, from any file where transformers saves one; raises BundleError without."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    given = read_json(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(given, list):
        given = next((each["template"] for each in given if each["name"] == "default"), None)
    if not isinstance(given, str):
        raise BundleError(
            f"{folder} has no chat template: use a chat model, or put a chat_template.jinja into the folder"
        )
    return given


def misfits(folder: Path, rows: int) -> list[str]:
    """Return why tokenizer and template of a decoder part cannot serve media; `rows` is the size of the embedding.

    Raises BundleError for a tokenizer that cannot be read.
    """
    tokenizer = _tokenizer(folder)
    if missing := _missing(tokenizer):
        return [f"the tokenizer has no token {text}; assemble the bundle with autoglm bundle init" for text in missing]
    highest = max(tokenizer.get_vocab().values())
    if highest >= rows:
        return [f"the tokenizer's highest id is {highest}, and the embedding has {rows} rows; resize one of them"]
    return _template_faults(folder)


def _tokenizer(folder: Path) -> Tokenizer:
    file = folder / "tokenizer.json"
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises nothing more specific
        raise BundleError(f"{file} cannot be read ({error}); restore the file") from error


def _missing(tokenizer: Tokenizer) -> list[str]:
    return [text for text in GCMA_LAYOUT.media_tokens if len(tokenizer.encode(text, add_special_tokens=False).ids) != 1]


def _template_faults(folder: Path) -> list[str]:
    system, user, assistant, last = _MARKS
    media = [Media("image", torch.zeros(2, 1)), Media("audio", torch.zeros(3, 1))]
    turns = [
        PromptMessage("system", (system,)),
        PromptMessage("user", (*media, user)),
        PromptMessage("assistant", (assistant,)),
        PromptMessage("user", (media[0], last)),
    ]
    try:
        composer = Composer(folder, GCMA_LAYOUT)
        prompt = composer.compose(turns)
    except (OSError, TemplateError) as error:
        return [f"the chat template cannot be used ({error}); write another to chat_template.jinja"]
    whole = _in_order(composer.tokenizer.decode(prompt.token_ids), _MARKS) and _shows(prompt, image=4, audio=3)
    return [] if whole else ["the chat template omits or reorders parts of messages; use another"]


def _in_order(text: str, words: Sequence[str]) -> bool:
    places = [text.find(word) for word in words]
    return -1 not in places and places == sorted(places)


def _shows(prompt: Prompt, image: int, audio: int) -> bool:
    return prompt.count("image") == image and prompt.count("audio") == audio
