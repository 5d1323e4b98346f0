"""Keys of the prefix cache: two prefixes with one key have the same keys and values.

A block's key is the SHA-256 of the key before it and of the block's content: token ids, whether a token takes from
media, and for media the content and grid of the whole item (2 x 6 and 3 x 4 tokens can have equal bytes and have other
rope positions). What a token becomes depends on what is before it alone, so the key says everything.
"""

import hashlib
from collections.abc import Iterable

import numpy as np

from autoglm.decoder.engine.cache import BLOCK_SIZE
from autoglm.fusion.prompt import Prompt


def block_keys(prompt: Prompt, output: Iterable[int], salt: bytes) -> list[bytes]:
    """Return the key of every whole block of a prompt and of what was generated after it.

    `salt` starts the chain: sequences with different salts share nothing.
    """
    kinds, contents = _contents(prompt)
    tokens = np.array([*prompt.token_ids, *output], np.int64)
    flags = np.zeros(len(tokens), np.uint8)  # generated text takes nothing, as an assistant's text in a prompt
    flags[: len(kinds)] = kinds
    keys, before = list[bytes](), hashlib.sha256(salt).digest()
    for start in range(0, len(tokens) - BLOCK_SIZE + 1, BLOCK_SIZE):
        digest = hashlib.sha256(before)
        digest.update(tokens[start : start + BLOCK_SIZE].tobytes())
        digest.update(flags[start : start + BLOCK_SIZE].tobytes())
        for first, content in contents:
            if start <= first < start + BLOCK_SIZE:
                digest.update(content)
        before = digest.digest()
        keys.append(before)
    return keys


def _contents(prompt: Prompt) -> tuple[list[int], list[tuple[int, bytes]]]:
    """Return for each token of the prompt what it is (0 plain, 1 takes from media, 2 + kind for media), and where
    each medium starts with a digest of it."""
    kinds, contents = list[int](), list[tuple[int, bytes]]()
    for run in prompt.runs:
        kinds += [2 if run.media is not None else int(run.enriched)] * (run.stop - run.start)
        if run.media is not None:
            contents.append((run.start, run.media.digest))
    return kinds, contents
