"""oneDNN's matrices of the decoder: few shapes for any number of rows, and the same products."""

import pytest
import torch
from torch import nn

from autoglm.decoder.engine.models.glm import EXACT_ROWS, PackedLinear, padded_rows


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [2, EXACT_ROWS, EXACT_ROWS + 1, 67, 300])
def test_rows_that_are_added_change_no_product(rows: int, bias: bool) -> None:
    torch.manual_seed(0)
    source, x = nn.Linear(24, 40, bias), torch.randn(1, rows, 24)
    found = PackedLinear(source)(x)
    assert found.shape == (1, rows, 40)
    torch.testing.assert_close(found, source(x))


def test_prompts_of_any_length_need_few_shapes() -> None:
    shapes = {rows: padded_rows(rows) for rows in range(1, 8193)}
    assert all(rows <= padded <= rows * 9 / 8 for rows, padded in shapes.items())
    assert all(padded == rows for rows, padded in shapes.items() if rows <= EXACT_ROWS)
    assert len(set(shapes.values())) <= EXACT_ROWS + 8 * 8
