"""What several unit tests need."""

import pytest

from autoglm.fusion.compose import Composer
from autoglm.training import tokenizer


@pytest.fixture(scope="module")
def composer(tmp_path_factory: pytest.TempPathFactory) -> Composer:
    folder = tmp_path_factory.mktemp("decoder")
    tokenizer.build(folder)
    return Composer(folder)
