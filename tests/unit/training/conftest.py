"""What the tests of training share."""

from collections.abc import Iterator

import pytest

from autoglm.training.eval.speed import threads


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compute on one thread, where equal inputs give equal results and cores that others use are not waited for."""
    with threads(1):
        yield
