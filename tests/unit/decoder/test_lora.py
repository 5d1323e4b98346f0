"""LoRA adapters that PEFT wrote: beside each other in one batch, each as PEFT merges it."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers.models.glm.modeling_glm import GlmForCausalLM

from autoglm.common.bundle import ADAPTERS, Bundle, BundleError, write_manifest
from autoglm.decoder.engine.adapter_files import check_adapter
from autoglm.decoder.engine.cache import num_blocks
from autoglm.decoder.engine.core import EngineCore
from autoglm.decoder.engine.engine import EmbeddedEngine
from autoglm.decoder.engine.lora import Adapter, Adapters, load
from autoglm.decoder.engine.models.glm import Glm, View, adapted_matrices
from autoglm.decoder.engine.request import AdapterRef, Request, RequestOutput, SamplingConfig
from autoglm.decoder.engine.runner import Runner
from autoglm.decoder.engine.scheduler import EngineLimits
from autoglm.decoder.engine.vllm_engine import max_lora_rank_of
from autoglm.fusion.gcma.model import GcmaConfig, GcmaFusion
from autoglm.fusion.prompt import Prompt, Run
from autoglm.training.stages.fusion_decoder import DecoderConfig, glm_config

CONTEXT, VOCABULARY, LENGTH = 256, 320, 40
CPU = torch.device("cpu")
EVERY = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"]


def decoder() -> GlmForCausalLM:
    """Return a small GLM; always the same."""
    torch.manual_seed(3)
    model = GlmForCausalLM(glm_config(DecoderConfig(256, 2, CONTEXT), VOCABULARY)).eval()
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.xavier_uniform_(weight)
    return model


def write(folder: Path, seed: int, **config: object) -> None:
    """Let PEFT write an adapter with random weights."""
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 16, "target_modules": EVERY, "task_type": "CAUSAL_LM"} | config
    model = get_peft_model(decoder(), LoraConfig(**settings))
    torch.manual_seed(seed)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.2)
    model.save_pretrained(str(folder))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    write(root / "all", 1)
    write(root / "queries", 2, r=3, target_modules=["q_proj", "v_proj"], use_rslora=True)
    return {name: root / name for name in ("all", "queries")}


@pytest.fixture(scope="module")
def glm() -> Glm:
    return Glm(decoder(), CONTEXT)


@pytest.fixture(scope="module")
def adapters(glm: Glm, folders: dict[str, Path]) -> dict[str, Adapter]:
    return {
        name: load(folder, name, name, adapted_matrices(glm.config), torch.float32, CPU)
        for name, folder in folders.items()
    }


@pytest.fixture
def engine(glm: Glm, adapters: dict[str, Adapter]) -> Iterator[EmbeddedEngine]:
    runner = Runner(glm, GcmaFusion(GcmaConfig(text_width=256)), 4, 64)
    limits = EngineLimits(4, 64, 4 * num_blocks(CONTEXT))
    engine = EmbeddedEngine(EngineCore(runner, limits, stops=(), get_adapter=adapters.__getitem__))
    yield engine
    engine.close()


IDS = list(range(20, 120))


def ask(engine: EmbeddedEngine, adapter: str | None) -> "SimpleQueue[RequestOutput]":
    outputs: SimpleQueue[RequestOutput] = SimpleQueue()
    prompt = Prompt(IDS, (Run(0, len(IDS), enriched=False),), "")
    sampling = SamplingConfig(temperature=0, max_tokens=LENGTH)
    ref = None if adapter is None else AdapterRef(adapter, adapter)
    engine.submit(Request(prompt, sampling, CONTEXT, adapter=ref), outputs.put)
    return outputs


def collect(outputs: "SimpleQueue[RequestOutput]") -> tuple[list[int], int]:
    """Return the tokens of an answer, and how many of its prompt's came from the prefix cache."""
    said = [outputs.get(timeout=60)]
    while said[-1].finish is None:
        said.append(outputs.get(timeout=60))
    assert said[-1].finish == "length"
    assert said[0].prefill is not None
    return [output.token.token_id for output in said if output.token], said[0].prefill.num_cached_tokens


def theirs(folder: Path | None) -> list[int]:
    """Return what transformers says with an adapter merged into the weights by PEFT."""
    model = decoder()
    if folder is not None:
        model = PeftModel.from_pretrained(model, folder).merge_and_unload()
    said = model.generate(
        torch.tensor([IDS]), max_new_tokens=LENGTH, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    return [int(token) for token in said[0, len(IDS) :]]


def test_adapters_answer_side_by_side_as_peft_merges_them(engine: EmbeddedEngine, folders: dict[str, Path]) -> None:
    """And a second time, from prefixes that each of them has for itself."""
    wanted = {name: theirs(folder) for name, folder in folders.items()} | {None: theirs(None)}
    assert len({tuple(tokens) for tokens in wanted.values()}) == 3
    order = ["all", None, "queries", "all"]
    for time in range(2):
        said = [collect(outputs) for outputs in [ask(engine, name) for name in order]]
        assert [tokens for tokens, _ in said] == [wanted[name] for name in order]
        assert [cached > 0 for _, cached in said[:3]] == [time == 1] * 3


def test_few_are_held_and_the_one_longest_unused_goes_first() -> None:
    made = list[str]()

    def make(name: str) -> Adapter:
        made.append(name)
        return Adapter(name, name, Path(name))

    adapters = Adapters(make, ["a", "b", "c"], limit=2)
    for name in ("a", "b", "a", "c", "a", "b"):
        assert adapters.get(name).name == name
    assert made == ["a", "b", "c", "b"]
    assert adapters.loaded == {"a", "b"}
    with pytest.raises(KeyError):
        adapters.get("d")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"peft_type": "LOHA"}, "peft_type"),
    ],
)
def test_what_is_no_plain_lora_is_refused(
    folders: dict[str, Path], tmp_path: Path, glm: Glm, change: dict[str, object], fault: str
) -> None:
    config = json.loads((folders["all"] / "adapter_config.json").read_text()) | change
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(BundleError, match=fault):
        load(tmp_path, "x", "x", adapted_matrices(glm.config), torch.float32, CPU)


Weights = dict[str, torch.Tensor]
QUERY = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"


def changed(weights: Weights, key: str, *shape: int) -> Weights:
    return weights | {key: torch.zeros(shape)}


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda given: changed(given, QUERY.format("A"), 4, 255), "q_proj has 256 outputs and 256 inputs"),
        (lambda given: changed(given, QUERY.format("B"), 255, 4), "q_proj has 256 outputs and 256 inputs"),
        (
            lambda given: changed(given, QUERY.format("A"), 5, 256),
            "has shape [5, 256], and adapter_config.json says r 4",
        ),
        (lambda given: changed(given, QUERY.format("B"), 256), "has shape [256], and adapter_config.json says r 4"),
        (
            lambda given: changed(given, QUERY.format("A").replace("s.0", "s.7"), 4, 256),
            "and not base_model.model.model.l",
        ),
        (
            lambda given: {k.replace("layers.1", "layers.9"): w for k, w in given.items()},
            "and the decoder has 2 layers",
        ),
        (
            lambda _: {"base_model.model.lm_head.lora_A.weight": torch.zeros(4, 256)},
            "lm_head.lora_A.weight belongs to no",
        ),
        (lambda _: {}, "it has no tensors"),
    ],
    ids=["inputs", "outputs", "rank", "vector", "half", "layer", "module", "empty"],
)
def test_an_adapter_of_another_decoder_is_refused(
    folders: dict[str, Path], tmp_path: Path, glm: Glm, change: Callable[[Weights], Weights], fault: str
) -> None:
    shutil.copy(folders["all"] / "adapter_config.json", tmp_path)
    save_file(change(load_file(folders["all"] / "adapter_model.safetensors")), tmp_path / "adapter_model.safetensors")
    with pytest.raises(BundleError, match=re.escape(fault)) as refused:
        load(tmp_path, "x", "x", adapted_matrices(glm.config), torch.float32, CPU)
    assert str(refused.value).startswith(f"{tmp_path / 'adapter_model.safetensors'}: ")


DAMAGE = {
    "cut": (lambda text: text[:-9], "adapter_config.json is damaged (Unterminated"),
    "binary": (lambda text: "\0\x01" + text, "adapter_config.json is damaged (Expecting value"),
    "a list": (lambda _: "[]", "adapter_config.json is damaged (it is not a JSON object)"),
    "no rank": (lambda text: text.replace('"r":', '"s":'), "adapter_config.json: r is None, not a positive integer"),
    "a rank of words": (lambda text: text.replace('"r": 4', '"r": "4"'), "adapter_config.json: r is '4', not a pos"),
    "a rank of 0": (lambda text: text.replace('"r": 4', '"r": 0'), "adapter_config.json: r is 0, not a positive"),
    "no alpha": (lambda text: text.replace('"lora_alpha"', '"x"'), "adapter_config.json: lora_alpha is None, not a"),
}


@pytest.mark.parametrize(("damage", "fault"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_config_is_told_as_damaged(
    folders: dict[str, Path], tmp_path: Path, damage: Callable[[str], str], fault: str
) -> None:
    folder = shutil.copytree(folders["all"], tmp_path / "adapter")
    file = folder / "adapter_config.json"
    file.write_text(damage(file.read_text()))
    with pytest.raises(BundleError, match=re.escape(fault)) as refused:
        check_adapter(folder)
    assert "\n" not in str(refused.value)


def test_weights_that_are_cut_short_or_gone_are_told_apart_from_wrong_ones(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(folders["all"], tmp_path / "adapter")
    file = folder / "adapter_model.safetensors"
    for data in (file.read_bytes()[:-10], b"", b"{}"):
        file.write_bytes(data)
        with pytest.raises(BundleError, match=r"adapter_model\.safetensors is not a whole safetensors file"):
            check_adapter(folder)
    file.unlink()
    with pytest.raises(BundleError, match="No such file"):
        check_adapter(folder)


def test_vllm_is_asked_for_a_rank_that_it_has(folders: dict[str, Path], tmp_path: Path) -> None:
    assert max_lora_rank_of([]) == 0
    assert max_lora_rank_of(folders.values()) == 8
    config = json.loads((folders["all"] / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"r": 513}))
    with pytest.raises(BundleError, match="rank 513, and vLLM supports 512 at most"):
        max_lora_rank_of([tmp_path])


def test_8_bit_layers_take_adapters_too(adapters: dict[str, Adapter]) -> None:
    """The sums of rounded weights and an adapter in full stay near those of full weights."""
    torch.manual_seed(7)
    plain, rounded = Glm(decoder(), CONTEXT), Glm(decoder(), CONTEXT, int8=True)
    x = torch.randn(1, 6, 256)
    logits = []
    for model in (plain, rounded):
        runner = Runner(model, GcmaFusion(GcmaConfig(text_width=256)), 1, 64)
        with torch.inference_mode():
            for adapter in (adapters["all"], None):
                view = View(model.rope(torch.arange(6)[None, None]), slice(0, 1), torch.arange(6)[None], 6, [adapter])
                logits.append(model(x, view, runner.slots.stores))
    change, rounding = (logits[0] - logits[1]).norm(), (logits[0] - logits[2]).norm()
    assert rounding < 0.2 * change


def test_a_bundle_lists_its_adapters_with_their_hashes(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "decoder").mkdir()
    (tmp_path / "decoder" / "config.json").write_text("{}")
    shutil.copytree(folders["all"], tmp_path / ADAPTERS / "all")
    bundle = write_manifest(tmp_path, "b", "gcma")
    bundle.verify()
    assert bundle.adapter("all") == (tmp_path / ADAPTERS / "all").resolve()
    (tmp_path / ADAPTERS / "all" / "adapter_config.json").write_text("{}")
    with pytest.raises(BundleError, match=r"adapters/all/adapter_config\.json"):
        bundle.verify()
    (tmp_path / ADAPTERS / "all" / "adapter_config.json").unlink()
    with pytest.raises(BundleError, match="restore the file"):
        Bundle.open(tmp_path).adapter("all")
