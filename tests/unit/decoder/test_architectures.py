"""The seam for architectures: one row makes a model of another kind answer through the real servicer.

The model is a tiny random GLM with three rows of rope positions, whose media tokens take the place of their
placeholders. transformers' own parts compute what it has to say.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers.models.glm import GlmConfig
from transformers.models.glm.modeling_glm import GlmForCausalLM
from transformers.models.glm4v.configuration_glm4v import Glm4vTextConfig
from transformers.models.glm4v.modeling_glm4v import Glm4vTextRotaryEmbedding

from autoglm.common.bundle import Bundle, BundleError, write_manifest
from autoglm.common.torch_tensors import from_torch
from autoglm.decoder.architectures import ARCHITECTURES, Architecture
from autoglm.decoder.detokenizer import token_bytes
from autoglm.decoder.engine.models.glm import Glm
from autoglm.decoder.model import DecoderModel, TokenIds
from autoglm.decoder.servicer import DecoderServicer
from autoglm.decoder.settings import DecoderSettings
from autoglm.fusion.compose import Composer
from autoglm.fusion.layout import Layout, MediaLayout
from autoglm.fusion.prompt import Media, Prompt, PromptMessage
from autoglm.fusion.protocol import Fusion
from autoglm.fusion.splice import SpliceConfig, SpliceFusion
from autoglm.training.stages import tokenizer
from autoglm.v1 import decoder_pb2, embedding_pb2, generation_pb2, modality_pb2

WIDTH, IMAGE_WIDTH, HEAD_DIM, CONTEXT, ANSWER = 64, 12, 32, 256, 16
ROPE = {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5, "mrope_section": [2, 3, 3]}
LAYOUT = Layout(
    (MediaLayout("image", "<|begin_of_image|>", "<|image|>", "<|end_of_image|>"),), media_first=False, separator="\n"
)


def load_splice(folder: Path, dtype: torch.dtype, device: torch.device) -> Fusion:
    return SpliceFusion.from_pretrained(folder, dtype).to(device)


ROW = Architecture(LAYOUT, load_splice, Glm.from_pretrained)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a bundle of an architecture that the release does not have."""
    root = tmp_path_factory.mktemp("bundle")
    (root / "decoder").mkdir()
    tokenizer.build(root / "decoder")
    composer = Composer(root / "decoder", LAYOUT)
    torch.manual_seed(11)
    model = GlmForCausalLM(
        GlmConfig(
            vocab_size=-(-composer.vocabulary // 64) * 64, hidden_size=WIDTH, intermediate_size=2 * WIDTH,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=HEAD_DIM,
            max_position_embeddings=CONTEXT, attention_bias=True, pad_token_id=0, eos_token_id=None,
            rope_parameters=ROPE,
        )
    )  # fmt: skip
    for weight in model.parameters():
        if weight.ndim > 1:
            nn.init.xavier_uniform_(weight, gain=2.0)
    nn.init.normal_(model.model.embed_tokens.weight)
    model.generation_config.eos_token_id = composer.tokenizer.token_to_id("<|user|>")
    model.save_pretrained(root / "decoder")
    SpliceFusion(SpliceConfig(WIDTH, {"image": IMAGE_WIDTH}, position_rows=3)).save_pretrained(root / "fusion")
    write_manifest(root, "tiny", "splice")
    return root


@pytest.fixture(scope="module")
def servicer(folder: Path) -> Iterator[DecoderServicer]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "splice", ROW)
        settings = {"bundle": str(folder), "device": "cpu", "max_num_seqs": 2, "kv_cache_memory_bytes": 2**24}
        loaded = DecoderServicer.load(DecoderSettings.model_validate(settings))
    yield loaded
    loaded.engine.close()


class RopeOf(nn.Module):
    """GLM-4.1V's rope at given positions [3, T], in the form in which GLM takes it: each angle once, then again."""

    def __init__(self, positions: Tensor) -> None:
        super().__init__()
        self._positions = positions
        self._rope = Glm4vTextRotaryEmbedding(Glm4vTextConfig(head_dim=HEAD_DIM, rope_parameters=ROPE))

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self._rope(x, self._positions[:, None, : x.shape[1]])
        return cos[..., ::2].repeat(1, 1, 2), sin[..., ::2].repeat(1, 1, 2)


def positions_of(runs: list[tuple[int, tuple[int, int] | None]]) -> Tensor:
    """Return positions [3, T] of stretches of tokens, (length, grid or None for text), one after another."""
    columns, start = list[tuple[int, int, int]](), 0
    for length, grid in runs:
        if grid is None:
            columns += [(start + i,) * 3 for i in range(length)]
            start += length
        else:
            columns += [(start, start + i // grid[1], start + i % grid[1]) for i in range(length)]
            start += max(grid)
    return torch.tensor(columns).T


class Reference:
    """transformers' GLM over spliced embeddings, every pass from the start."""

    def __init__(self, folder: Path) -> None:
        self.glm = GlmForCausalLM.from_pretrained(folder / "decoder", dtype=torch.float32).eval()
        self.composer = Composer(folder / "decoder", LAYOUT)
        self._image = self.composer.tokenizer.token_to_id("<|image|>") or 0
        self._projector = SpliceFusion.from_pretrained(folder / "fusion").projectors["image"]
        token_ids = TokenIds.of(folder / "decoder", self.glm.config.vocab_size, LAYOUT)
        self._never, (self._end,) = token_ids.never, token_ids.stops

    @torch.inference_mode()
    def say(self, prompt: Prompt, media: list[Media]) -> list[int]:
        """Return the likeliest tokens after `prompt`."""
        ids = torch.tensor(prompt.token_ids)
        embeddings, image = self.glm.model.embed_tokens(ids), ids.eq(self._image)
        if media:
            embeddings[image] = self._projector(torch.cat([one.tokens for one in media]).float())
        runs, at = list[tuple[int, tuple[int, int] | None]](), 0
        for one in media:
            first = at + int(image[at:].int().argmax())
            runs += [(first - at, None), (len(one.tokens), (one.grid[0], one.grid[1]))]
            at = first + len(one.tokens)
        self.glm.model.rotary_emb = RopeOf(positions_of([*runs, (len(ids) - at + ANSWER, None)]))
        said = list[int]()
        for _ in range(ANSWER):
            inputs = torch.cat([embeddings, self.glm.model.embed_tokens(torch.tensor(said, dtype=torch.long))])
            logits = self.glm(inputs_embeds=inputs[None], use_cache=False).logits[0, -1]
            logits[[*self._never, self._end]] = -torch.inf
            said.append(int(logits.argmax()))
        return said


@dataclass
class Called:
    """A context on which an error would be set."""

    errors: list[str] = field(default_factory=list)

    def set_code(self, code: object) -> None: ...

    def set_details(self, details: str) -> None:
        self.errors.append(details)

    def set_trailing_metadata(self, metadata: object) -> None: ...


async def ask(servicer: DecoderServicer, *parts: str | Media) -> tuple[list[bytes], int]:
    """Return the tokens of an answer as bytes, and how many of the prompt's came from the prefix cache."""
    end = servicer.model.composer.tokenizer.token_to_id("<|user|>")
    greedy = generation_pb2.SamplingParams(
        temperature=0, max_tokens=ANSWER, top_logprobs=0, logit_bias={end or 0: -1e9}
    )
    turn = decoder_pb2.DecoderMessage(role=generation_pb2.ROLE_USER, parts=[packed(part) for part in parts])
    request = decoder_pb2.DecoderServiceGenerateRequest(messages=[turn], sampling=greedy)
    context = Called()
    messages = [message async for message in servicer.generate(request, context)]
    assert not context.errors
    tokens = [entry.chosen.token_bytes for message in messages for entry in message.logprobs]
    return tokens, messages[-1].finish.usage.cached_tokens


def packed(part: str | Media) -> decoder_pb2.DecoderPart:
    if isinstance(part, str):
        return decoder_pb2.DecoderPart(text=part)
    tokens, modality = from_torch(part.tokens), modality_pb2.MODALITY_IMAGE
    return decoder_pb2.DecoderPart(media=embedding_pb2.Embedding(modality=modality, tokens=tokens, grid=part.grid))


def screen(*grid: int, seed: int = 1) -> Media:
    tokens = torch.randn(12, IMAGE_WIDTH, generator=torch.Generator().manual_seed(seed))
    return Media("image", tokens, grid=grid)


LONG = "Where is the camera on this phone, please? " * 4
QUESTIONS: list[tuple[str | Media, ...]] = [
    ("Who are you?",),
    (screen(3, 4), "Where is Camera?"),
    (LONG, screen(2, 6), "and", screen(6, 2, seed=2), "打开相机"),
]


@pytest.mark.parametrize("parts", QUESTIONS)
async def test_another_architecture_answers_token_for_token(
    servicer: DecoderServicer, folder: Path, parts: tuple[str | Media, ...]
) -> None:
    """Text, an image, and text around two images; the second time from the prefix cache."""
    reference = Reference(folder)
    prompt = reference.composer.compose([PromptMessage("user", parts)])
    said = reference.say(prompt, [part for part in parts if isinstance(part, Media)])
    wanted = [token_bytes(reference.composer.tokenizer, token) for token in said]
    assert len({*wanted}) > ANSWER // 2
    assert (await ask(servicer, *parts))[0] == wanted
    again, cached = await ask(servicer, *parts)
    assert again == wanted
    assert (cached > 0) == (len(prompt.token_ids) > 64)


async def test_equal_bytes_in_another_grid_are_another_image(servicer: DecoderServicer, folder: Path) -> None:
    reference, said = Reference(folder), list[list[bytes]]()
    for grid in ((1, 12), (2, 6), (4, 3)):
        parts = (screen(*grid, seed=3), LONG)
        prompt = reference.composer.compose([PromptMessage("user", parts)])
        answer, cached = await ask(servicer, *parts)
        assert answer == [
            token_bytes(reference.composer.tokenizer, token) for token in reference.say(prompt, [screen(*grid, seed=3)])
        ]
        assert cached == 0
        said.append(answer)
    assert said[0] != said[1] != said[2] != said[0]


async def test_the_model_says_what_it_takes(servicer: DecoderServicer) -> None:
    about = servicer.describe()
    assert list(about.modalities) == [modality_pb2.MODALITY_TEXT, modality_pb2.MODALITY_IMAGE]
    assert (about.context_length, about.embedding_width) == (CONTEXT, WIDTH)


def test_an_unknown_architecture_is_refused_with_the_known_ones(folder: Path) -> None:
    with pytest.raises(BundleError) as refused:
        DecoderModel.load(Bundle.open(folder), DecoderSettings.model_validate({}))
    assert str(refused.value) == "bundle tiny has architecture 'splice'; this release knows: gcma"
