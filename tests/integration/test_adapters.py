"""LoRA adapters of a bundle over a real mesh: `base:adapter` names them, and unknown ones are refused."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers.models.glm.modeling_glm import GlmForCausalLM

from autoglm.common.bundle import ADAPTERS, ALIASES, write_manifest
from autoglm.common.errors import NotFound, from_rpc_error
from autoglm.v1.chat_pb2 import ChatMessage, ChatRequest, CompleteRequest, ContentPart
from autoglm.v1.chat_pb2_grpc import ChatServiceStub
from autoglm.v1.generation_pb2 import ROLE_USER

from ..asking import Asker
from ..mesh import Mesh, running_mesh, text_bundle
from ..waiting import NET_SECONDS

NAMES = ("one", "two")


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """In place of the shared mesh: a bundle with two adapters of random weights, of which one is held at a time."""
    bundle = text_bundle(tmp_path_factory.mktemp("bundle"))
    for seed, name in enumerate(NAMES):
        model = get_peft_model(
            GlmForCausalLM.from_pretrained(bundle / "decoder", dtype=torch.float32),
            LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"),
        )
        torch.manual_seed(seed)
        for key, weight in model.named_parameters():
            if "lora_" in key:
                torch.nn.init.normal_(weight, std=0.3)
        model.save_pretrained(str(bundle / ADAPTERS / name))
    write_manifest(bundle, "adapted", "gcma").verify()
    with running_mesh(tmp_path_factory.mktemp("mesh") / "serve.log", AUTOGLM_BUNDLE=str(bundle)) as running:
        yield running


def test_each_name_answers_for_itself_and_all_at_once(ask: Asker) -> None:
    listed = [card["id"] for card in ask.http.get("/v1/models").json()["data"]]
    assert listed == [f"{base}{end}" for base in ("adapted", *ALIASES) for end in ("", ":one", ":two")]
    with ThreadPoolExecutor(len(listed)) as users:
        answers = dict(
            zip(listed, users.map(lambda name: ask("你是谁?", model=name, max_tokens=24), listed), strict=True)
        )
    assert "AutoGLM-Phone" in answers["adapted"]
    assert len({answers[name] for name in listed[:3]}) == 3
    assert all(answers[f"adapted{end}"] == answers[f"{base}{end}"] for base in ALIASES for end in ("", ":one", ":two"))
    body = ask.post("你是谁?", model="adapted:two").json()
    assert body["model"] == "adapted:two"
    card = ask.http.get("/v1/models/adapted:one").json()
    assert (card["id"], card["bundle"]) == ("adapted:one", "adapted")


@pytest.mark.parametrize("name", ["adapted:three", "adapted:", ":one", "other:one"])
def test_an_unknown_name_is_refused_with_those_that_there_are(ask: Asker, channel: grpc.Channel, name: str) -> None:
    response = ask.post("hi", model=name)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert "adapted:one" in error["message"]
    assert ask.http.get(f"/v1/models/{name}").status_code == 404
    message = ChatMessage(role=ROLE_USER, parts=[ContentPart(text="hi")])
    stub = ChatServiceStub(channel)
    with pytest.raises(grpc.RpcError) as refused:
        stub.Complete(CompleteRequest(chat=ChatRequest(model=name, messages=[message])), timeout=NET_SECONDS)
    assert isinstance(from_rpc_error(refused.value), NotFound)
