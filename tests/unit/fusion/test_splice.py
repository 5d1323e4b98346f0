"""The splice against NumPy, and its positions against transformers' GLM-4.1V."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers.models.glm4v.modeling_glm4v import Glm4vModel

from autoglm.fusion.gcma.model import GcmaConfig, GcmaFusion
from autoglm.fusion.positions import multimodal_positions
from autoglm.fusion.prompt import Media, Prompt, Run
from autoglm.fusion.protocol import Fusion
from autoglm.fusion.splice import SpliceConfig, SpliceFusion

WIDTH = 8
MERGE = 2  # GLM-4.1V makes one token of 2 × 2 patches


def media(grid: tuple[int, int], width: int = WIDTH) -> Media:
    tokens = torch.randn(grid[0] * grid[1], width, generator=torch.Generator().manual_seed(grid[0]))
    return Media("image", tokens, grid=grid)


def laid_out(*stretches: int | Media) -> Prompt:
    """Return a prompt of texts, by their number of tokens, and of media."""
    runs, start = list[Run](), 0
    for stretch in stretches:
        item, length = (None, stretch) if isinstance(stretch, int) else (stretch, len(stretch.tokens))
        stop = start + length
        runs.append(Run(start, stop, item))
        start = stop
    return Prompt(list(range(start)), tuple(runs), "")


@pytest.fixture
def embed() -> nn.Embedding:
    torch.manual_seed(0)
    return nn.Embedding(100, WIDTH)


def splice(rows: int = 3, **widths: int) -> SpliceFusion:
    torch.manual_seed(1)
    assert rows in (1, 3)
    return SpliceFusion(SpliceConfig(WIDTH, widths or {"image": WIDTH}, rows)).eval()  # type: ignore[arg-type]


def test_media_tokens_replace_their_placeholders(embed: nn.Embedding) -> None:
    prompt = laid_out(3, media((2, 3)), 2)
    table, tokens = embed.weight.detach().numpy(), prompt.runs[1].media
    assert tokens is not None
    literal = np.concatenate([table[0:3], tokens.tokens.numpy(), table[9:11]])
    np.testing.assert_array_equal(splice().inputs(embed, prompt).embeddings.numpy(), literal)


def test_other_widths_go_through_a_linear_projector(embed: nn.Embedding) -> None:
    fusion, prompt = splice(image=5), laid_out(1, media((2, 2), 5), 1)
    item, linear = prompt.runs[1].media, fusion.projectors["image"]
    assert item is not None
    weight, bias = (linear.get_parameter(name).detach().double().numpy() for name in ("weight", "bias"))
    ours = fusion.inputs(embed, prompt).embeddings[1:5].numpy()
    np.testing.assert_allclose(ours, item.tokens.double().numpy() @ weight.T + bias, atol=1e-6)


def test_inputs_from_any_token_on_are_those_of_the_whole(embed: nn.Embedding) -> None:
    for fusion in (splice(image=5), splice(rows=1, image=5)):
        prompt = laid_out(2, media((2, 3), 5), 4, media((3, 1), 5))
        whole = fusion.inputs(embed, prompt)
        for after in range(len(prompt.token_ids) + 3):
            rest = fusion.inputs(embed, prompt, after)
            assert torch.equal(rest.embeddings, whole.embeddings[after:])
            assert torch.equal(rest.positions, whole.positions[:, after:])
            assert rest.next_position == whole.next_position


def test_inputs_in_chunks_are_those_of_the_whole(embed: nn.Embedding) -> None:
    fusion, prompt = splice(image=5), laid_out(2, media((2, 3), 5), 4, media((3, 1), 5), 2)
    whole = fusion.inputs(embed, prompt, 3)
    chunked = fusion.chunked_inputs(embed, prompt, 3)
    assert chunked.num_tokens_to_read == 0
    embeddings = torch.cat([chunked.take(tokens) for tokens in (1, 4, 6, 3)])
    assert torch.equal(embeddings, whole.embeddings)
    assert torch.equal(chunked.positions, whole.positions)


def test_a_row_of_positions_counts_tokens(embed: nn.Embedding) -> None:
    inputs = splice(rows=1).inputs(embed, laid_out(2, media((2, 2)), 1))
    assert (inputs.positions.tolist(), inputs.next_position, inputs.gates) == ([list(range(7))], 7, {})


def test_three_rows_are_time_row_and_column() -> None:
    positions, following = multimodal_positions(laid_out(2, media((2, 3)), 2))
    assert positions.tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6],
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6],
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 6],
    ]
    assert following == 7


def test_media_without_a_grid_count_as_text_does() -> None:
    positions, following = multimodal_positions(laid_out(1, Media("audio", torch.zeros(3, WIDTH)), 1))
    assert (positions.tolist(), following) == ([list(range(5))] * 3, 5)


@pytest.mark.parametrize(
    "stretches",
    [(4,), (3, (2, 6), 5), (1, (3, 4), 2, (4, 3), 1), ((1, 1), 2), (2, (5, 2))],
)
def test_three_rows_are_those_of_glm_4_1v(stretches: tuple[int | tuple[int, int], ...]) -> None:
    prompt = laid_out(*(each if isinstance(each, int) else media(each) for each in stretches))
    ids = torch.tensor([prompt.token_ids])
    types = torch.zeros_like(ids)
    for run in prompt.runs:
        types[0, run.start : run.stop] = int(run.media is not None)
    grids = [(1, MERGE * each[0], MERGE * each[1]) for each in stretches if not isinstance(each, int)]
    config = SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=MERGE))
    model = SimpleNamespace(config=config, get_vision_position_ids=Glm4vModel.get_vision_position_ids.__get__(config))
    theirs, delta = Glm4vModel.get_rope_index(model, ids, types, torch.tensor(grids) if grids else None)
    ours, following = multimodal_positions(prompt)
    assert torch.equal(ours, theirs[:, 0])
    assert following == len(prompt.token_ids) + int(delta)


def test_pooled_vectors_are_means_of_length_one(embed: nn.Embedding) -> None:
    fusion, item = splice(), media((2, 3))
    for ours, rows in (
        (fusion.pool_text(embed, [7, 9]), embed.weight[[7, 9]].detach()),
        (fusion.pool_media(item), item.tokens),
    ):
        mean = rows.double().numpy().mean(0)
        np.testing.assert_allclose(ours.numpy(), mean / np.linalg.norm(mean), atol=1e-6)


def test_save_and_load(tmp_path: Path) -> None:
    for number, fusion in enumerate((splice(image=5), splice(rows=1))):
        fusion.save_pretrained(tmp_path / str(number))
        loaded = SpliceFusion.from_pretrained(tmp_path / str(number))
        assert loaded.config == fusion.config
        for name, value in fusion.state_dict().items():
            torch.testing.assert_close(loaded.state_dict()[name], value.to(torch.bfloat16).float())


def test_both_fusions_fit_the_protocol() -> None:
    gcma = GcmaFusion(GcmaConfig(text_width=WIDTH, media_widths={"image": 5}, width=16, heads=2))
    both: list[Fusion] = [splice(image=5), gcma]
    assert [(each.text_width, each.width, each.media_widths) for each in both] == [
        (WIDTH, WIDTH, {"image": 5}),
        (WIDTH, 16, {"image": 5}),
    ]
