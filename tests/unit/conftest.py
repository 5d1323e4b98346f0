"""What several unit tests need."""

from collections.abc import Iterator

import pytest
import torch

from autoglm.decoder.engine.models.glm import Glm
from autoglm.fusion.compose import Composer
from autoglm.fusion.gcma.layout import GCMA_LAYOUT
from autoglm.training.stages import tokenizer
from autoglm.training.stages.fusion_decoder import DecoderConfig, FusionDecoder

from .decoder.engines import CONTEXT, LENGTHS, Engines, prompts, theirs


@pytest.fixture(scope="module")
def composer(tmp_path_factory: pytest.TempPathFactory) -> Composer:
    folder = tmp_path_factory.mktemp("decoder")
    tokenizer.build(folder)
    return Composer(folder, GCMA_LAYOUT)


@pytest.fixture(scope="module")
def assistant(composer: Composer) -> FusionDecoder:
    """A model that says many different things: untrained, but for layers that add something."""
    config = DecoderConfig(hidden=256, layers=2, context=CONTEXT)
    made = FusionDecoder.fresh(config, composer.tokenizer.get_vocab_size(), seed=4).eval()
    for layer in made.decoder.model.layers:
        torch.nn.init.xavier_uniform_(layer.self_attn.o_proj.weight)
        torch.nn.init.xavier_uniform_(layer.mlp.down_proj.weight)
    return made


@pytest.fixture(scope="module")
def glm(assistant: FusionDecoder) -> Glm:
    return Glm(assistant.decoder, CONTEXT)


@pytest.fixture
def engines(glm: Glm, assistant: FusionDecoder) -> Iterator[Engines]:
    made = Engines(glm, assistant)
    yield made
    for engine in made.made:
        engine.close()


@pytest.fixture(scope="module")
def expected(assistant: FusionDecoder, composer: Composer) -> list[list[int]]:
    answers = [theirs(assistant, prompt, n) for prompt, n in zip(prompts(composer), LENGTHS, strict=True)]
    assert len({token for answer in answers for token in answer}) > 50  # they tell one place from another
    return answers
