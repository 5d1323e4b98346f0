"""The private parts of Ray that the mesh patches exist in the pinned version, with the signatures that it expects."""

import inspect
from functools import partial

import pytest
from ray._private import parameter
from ray._private.node import Node
from ray.serve._private import default_impl, grpc_util, proxy

from autoglm.cli.isolation import Ports
from autoglm.common import ray_internals


def names(function: object) -> list[str]:
    return list(inspect.signature(function).parameters)  # type: ignore[arg-type]


def test_serve_adds_its_grpc_address_through_a_function_that_can_be_replaced() -> None:
    assert names(default_impl.add_grpc_address) == ["grpc_server", "server_address"]
    started = inspect.getsource(grpc_util.start_grpc_server)
    assert "from ray.serve._private.default_impl import add_grpc_address" in started
    assert 'add_grpc_address(server, f"[::]:' in started


@pytest.mark.parametrize(("loopback", "address"), [("1", "127.0.0.1:9000"), ("0", "[::]:9000")])
def test_a_replica_listens_on_loopback_where_it_is_told_to(
    monkeypatch: pytest.MonkeyPatch, loopback: str, address: str
) -> None:
    added = list[str]()
    monkeypatch.setattr(default_impl, "add_grpc_address", lambda _server, address: added.append(address))
    monkeypatch.setenv("AUTOGLM_LOOPBACK_ONLY", loopback)
    ray_internals.listen_on_loopback()
    default_impl.add_grpc_address(None, "[::]:9000")
    assert added == [address]


def test_the_fallback_proxy_is_known_by_its_class_and_handler_factory() -> None:
    assert proxy.gRPCProxy.__name__ == ray_internals.FALLBACK_PROXY
    assert names(proxy.gRPCProxy.service_handler_factory)[0] == "self"
    assert names(grpc_util.gRPCGenericServer.__init__)[1] == "service_handler_factory"
    assert names(grpc_util.gRPCGenericServer.add_passthrough_service) == ["self", "service_name"]
    server = grpc_util.gRPCGenericServer.__new__(grpc_util.gRPCGenericServer)
    server.service_handler_factory = proxy.gRPCProxy.__new__(proxy.gRPCProxy).service_handler_factory
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
        assert ray_internals.is_fallback_proxy(server)
        assert not ray_internals.is_fallback_proxy(object())
        patch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "0")
        assert not ray_internals.is_fallback_proxy(server)


def test_a_slim_start_patches_what_ray_init_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ray_internals.UNNEEDED_PROCESSES:
        assert names(getattr(Node, name))[0] == "self"
        monkeypatch.setattr(Node, name, getattr(Node, name))
    ports = Ports(9000, 20_000).agents
    assert set(ports) <= set(names(parameter.RayParams.__init__))
    assert "self._webui_url" in inspect.getsource(Node)
    monkeypatch.setattr(parameter, "RayParams", parameter.RayParams)
    ray_internals.slim_start(ports)
    made = parameter.RayParams
    assert isinstance(made, partial)
    assert made.keywords == ports
    node = Node.__new__(Node)
    node.start_api_server(include_dashboard=False, raise_on_failure=True)
    assert node._webui_url is None
