"""Rope with one row of positions and with three, as transformers computes them."""

import pytest
import torch
from torch import Tensor
from transformers.models.glm import GlmConfig
from transformers.models.glm.modeling_glm import GlmForCausalLM, GlmRotaryEmbedding, apply_rotary_pos_emb
from transformers.models.glm4v.configuration_glm4v import Glm4vTextConfig
from transformers.models.glm4v.modeling_glm4v import Glm4vTextRotaryEmbedding
from transformers.models.glm4v.modeling_glm4v import apply_rotary_pos_emb as apply_multimodal

from autoglm.decoder.engine.models.glm import Glm, apply_rope

HEAD_DIM, PAIRS, CONTEXT = 64, 16, 300
SECTIONS = [4, 6, 6]
ROPE = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 2 * PAIRS / HEAD_DIM}


def glm(**rope: object) -> Glm:
    config = GlmConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        head_dim=HEAD_DIM, vocab_size=100, pad_token_id=0, rope_parameters=ROPE | rope,
    )  # fmt: skip
    return Glm(GlmForCausalLM(config).eval(), CONTEXT)


def heads(n: int, t: int) -> Tensor:
    """Return heads [n, t, heads, head_dim]."""
    return torch.randn(n, t, 3, HEAD_DIM, generator=torch.Generator().manual_seed(8))


def positions(rows: int, n: int, t: int) -> Tensor:
    return torch.randint(0, CONTEXT, (rows, n, t), generator=torch.Generator().manual_seed(9))


def test_three_rows_of_positions_turn_as_in_glm_4_1v() -> None:
    at, x = positions(3, 2, 40), heads(2, 40)
    config = Glm4vTextConfig(head_dim=HEAD_DIM, rope_parameters=ROPE | {"mrope_section": SECTIONS})
    cos, sin = Glm4vTextRotaryEmbedding(config)(x, at)
    wanted, _ = apply_multimodal(x, x, cos, sin, unsqueeze_dim=2)
    got = x.clone()
    apply_rope(got, glm(mrope_section=SECTIONS).rope(at))
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_one_row_of_positions_turns_as_in_glm() -> None:
    at, x = positions(1, 2, 40), heads(2, 40)
    config = GlmConfig(head_dim=HEAD_DIM, rope_parameters=ROPE)
    cos, sin = GlmRotaryEmbedding(config)(x, at[0])
    wanted, _ = apply_rotary_pos_emb(x, x, cos, sin, unsqueeze_dim=2)
    got = x.clone()
    apply_rope(got, glm().rope(at))
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_equal_rows_turn_bit_for_bit_as_one() -> None:
    multimodal, at = glm(mrope_section=SECTIONS), positions(1, 2, 40)
    assert torch.equal(multimodal.rope(at.expand(3, -1, -1)), multimodal.rope(at))
    assert torch.equal(multimodal.rope(at), glm().rope(at))


def test_sections_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"mrope_section \[4, 6\] does not add up to the 16 pairs"):
        glm(mrope_section=[4, 6])
    with pytest.raises(ValueError, match="no mrope_section"):
        glm().rope(positions(3, 1, 4))
