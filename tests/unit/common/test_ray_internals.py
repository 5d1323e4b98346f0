"""The private parts of Ray that the mesh patches exist in the pinned version, with the signatures that it expects."""

import asyncio
import inspect
import re
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray._common.utils import load_class
from ray._private import parameter, ray_constants
from ray._private.node import Node
from ray.serve._private import default_impl, grpc_util, haproxy, proxy, proxy_router, replica, router
from ray.serve._private.proxy_request_response import gRPCStreamingType
from ray.serve._private.request_router import request_router
from ray.serve.config import HTTPOptions
from ray.serve.handle import DeploymentHandle
from ray.util.metrics import Counter, Metric

from autoglm.cli import isolation
from autoglm.cli.isolation import Ports, free_ports
from autoglm.common import ray_internals

from ...waiting import eventually_async, soon


def names(function: object) -> list[str]:
    return list(inspect.signature(function).parameters)  # type: ignore[arg-type]


def test_serve_adds_its_grpc_address_through_a_function_that_can_be_replaced() -> None:
    assert names(default_impl.add_grpc_address) == ["grpc_server", "server_address"]
    started = inspect.getsource(grpc_util.start_grpc_server)
    assert "from ray.serve._private.default_impl import add_grpc_address" in started
    assert 'add_grpc_address(server, f"[::]:' in started


def test_serve_and_haproxy_listen_on_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    added = list[str]()
    for module, name in ((default_impl, "add_grpc_address"), (replica, "add_port_to_grpc_server")):
        assert callable(getattr(module, name))
        monkeypatch.setattr(module, name, lambda _server, address: added.append(address))
    monkeypatch.setattr(haproxy, "HAPROXY_CONFIG_TEMPLATE", haproxy.HAPROXY_CONFIG_TEMPLATE)
    monkeypatch.setattr(haproxy, "HAProxyApi", haproxy.HAProxyApi)
    load_class(isolation.environment(Path(), Path(), Ports(9000, 20_000))[ray_internals.SETUP_HOOK])()
    default_impl.add_grpc_address(None, "[::]:9000")
    replica.add_port_to_grpc_server(None, "[::]:0")
    assert added == ["127.0.0.1:9000", "127.0.0.1:0"]
    template = haproxy.HAPROXY_CONFIG_TEMPLATE
    hosts = re.findall(r"^ +bind (.*):\{\{", template, re.MULTILINE)
    doors = {"{{ config.frontend_host }}", "{{ config.grpc_frontend_host }}"}  # they are of the options of Serve
    assert len(hosts) == 4
    assert set(hosts) == doors | {"127.0.0.1"}
    assert re.findall(r"stats socket .* mode (\d+)", template) == ["600"]
    assert "template = env.from_string(HAPROXY_CONFIG_TEMPLATE)" in inspect.getsource(haproxy)
    assert 'add_port_to_grpc_server(self._server, "[::]:0")' in inspect.getsource(replica)


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[haproxy.HAProxyApi]:
    """What runs HAProxy in its manager, on ports and in a folder of our own."""
    monkeypatch.setattr(haproxy, "HAProxyApi", haproxy.HAProxyApi)
    monkeypatch.setattr(haproxy, "HAPROXY_CONFIG_TEMPLATE", haproxy.HAPROXY_CONFIG_TEMPLATE)
    ray_internals.change_haproxy()
    assert "self._haproxy = HAProxyApi(" in inspect.getsource(haproxy)
    with tempfile.TemporaryDirectory() as folder:
        http, stats, metrics = free_ports(3)
        config = haproxy.HAProxyConfig(
            http_options=HTTPOptions(host="127.0.0.1", port=http),
            socket_path=f"{folder}/admin.sock",
            server_state_base=folder,
            server_state_file=f"{folder}/server-state",
            metrics_socket_path=f"{folder}/metrics.sock",
            stats_port=stats,
            metrics_port=metrics,
            is_head=True,
        )
        yield haproxy.HAProxyApi(config, config_file_path=f"{folder}/haproxy.cfg")


async def haproxy_process(api: haproxy.HAProxyApi, but: Collection[int] = ()) -> psutil.Process:
    """Return the HAProxy that answers, once it is not one of `but`."""

    async def is_another() -> bool:
        return await api._get_running_pid() not in {None, *but}

    await eventually_async(is_another, "HAProxy answers")
    pid = await api._get_running_pid()
    assert pid is not None
    return psutil.Process(pid)


async def test_haproxy_is_started_again_each_time_it_ends(api: haproxy.HAProxyApi) -> None:
    await api.start()
    killed = set[int]()
    for _ in range(3):
        running = await haproxy_process(api, killed)
        running.kill()
        killed.add(running.pid)
    await haproxy_process(api, killed)
    await api.stop()


async def test_haproxy_notices_a_node_that_vanishes(api: haproxy.HAProxyApi) -> None:
    await api.start()  # it accepts the file
    config = await asyncio.to_thread(Path(api.config_file_path).read_text, "utf-8")
    defaults = config[config.index("\ndefaults\n") : config.index("\nfrontend ")]
    assert "    option srvtcpka\n" in defaults
    assert f"    default-server tcp-ut {ray_internals.VANISHED_SECONDS}s\n" in defaults
    await api.stop()


async def test_a_reload_of_haproxy_is_no_end(api: haproxy.HAProxyApi) -> None:
    await api.start()
    before = await haproxy_process(api)
    await api.reload()
    after = await haproxy_process(api, [before.pid])
    await eventually_async(partial(has_ended, before), "the one before has ended")
    assert await haproxy_process(api) == after
    after.kill()
    last = await haproxy_process(api, [before.pid, after.pid])
    await api.reload()
    await haproxy_process(api, [before.pid, after.pid, last.pid])
    await api.stop()


async def has_ended(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


async def test_a_stopped_haproxy_stays_stopped(api: haproxy.HAProxyApi) -> None:
    await api.start()
    running = await haproxy_process(api)
    await api.stop()
    assert await has_ended(running)
    assert await api._get_running_pid() is None
    assert all(task is asyncio.current_task() for task in asyncio.all_tasks())


def test_rays_node_is_on_loopback_without_clusters() -> None:
    assert ray_constants.WORKER_PROCESS_SETUP_HOOK_ENV_VAR == ray_internals.SETUP_HOOK
    environment = isolation.environment(Path(), Path(), Ports(9000, 20_000))
    asked = "from ray.util import get_node_ip_address as ask; print(ask())"
    done = subprocess.run([sys.executable, "-c", asked], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "127.0.0.1"


def test_the_fallback_proxy_is_known_by_its_class_and_handler_factory() -> None:
    assert proxy.gRPCProxy.__name__ == ray_internals.FALLBACK_PROXY
    assert names(proxy.gRPCProxy.service_handler_factory)[0] == "self"
    assert names(grpc_util.gRPCGenericServer.__init__)[1] == "service_handler_factory"
    server = grpc_util.gRPCGenericServer.__new__(grpc_util.gRPCGenericServer)
    server.service_handler_factory = proxy.gRPCProxy.__new__(proxy.gRPCProxy).service_handler_factory
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
        assert ray_internals.is_fallback_proxy(server)
        assert not ray_internals.is_fallback_proxy(object())
        patch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "0")
        assert not ray_internals.is_fallback_proxy(server)


def test_the_fallback_proxy_can_see_which_replicas_run() -> None:
    """tests/integration/test_redeploy.py and tests/faults/test_replica.py show what it does with that."""
    assert "self.proxy_router = proxy_router" in inspect.getsource(proxy.GenericProxy.__init__)
    assert names(proxy_router.ProxyRouter.get_handle_for_endpoint) == ["self", "target_app_name"]
    assert "self._router: Optional[Router]" in inspect.getsource(DeploymentHandle.__mro__[1].__init__)
    for wrapper in (router.CurrentLoopRouter, router.SingletonThreadRouter):
        assert "self._asyncio_router = AsyncioRouter(" in inspect.getsource(wrapper.__init__)
    made = inspect.getsource(router.AsyncioRouter.__init__)
    assert "self._request_router: Optional[RequestRouter]" in made
    assert "self._running_replicas: Optional[List[RunningReplicaInfo]]" in made
    assert isinstance(request_router.RequestRouter.curr_replicas, property)
    assert "self._metrics_manager = RouterMetricsManager(" in made
    assert isinstance(router.RouterMetricsManager.autoscaling_config, property)
    for kind, is_stream in ((gRPCStreamingType.UNARY_UNARY, False), (gRPCStreamingType.UNARY_STREAM, True)):
        handler = proxy.gRPCProxy.service_handler_factory(object.__new__(proxy.gRPCProxy), "/a.B/C", kind)
        assert inspect.isasyncgenfunction(handler) is is_stream


class Refused(Exception):
    """What a refusal raises, as gRPC's abort does."""


class HoldingProxy:
    """A proxy that holds each call, as Serve's does while a replica does not answer."""

    proxy_router = None

    def __init__(self) -> None:
        self.held, self.ended = asyncio.Event(), asyncio.Event()
        self.service_handler_factory = self._handler

    def _handler(self, _method: str, is_stream: bool) -> Any:
        async def unary(request: str, _context: object) -> str:
            if request == "hold":
                await self._hold()
            return request

        async def stream(request: str, context: object) -> AsyncIterator[str]:
            yield await unary(request, context)
            yield "last"

        return stream if is_stream else unary

    async def _hold(self) -> None:
        self.held.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.set()


async def refused(_request: object, _context: object, scaled_to_zero: bool) -> None:
    if not scaled_to_zero:
        raise Refused


async def told(handler: Any, request: str) -> list[str]:
    """Return all that a handler answers."""
    if inspect.isasyncgenfunction(handler):
        return [message async for message in handler(request, None)]
    return [await handler(request, None)]


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_call_is_held_no_longer_than_a_replica_runs(is_stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    running = {"decoder"}
    monkeypatch.setattr(ray_internals, "has_replicas", lambda _router, application: application in running)
    monkeypatch.setattr(ray_internals, "scales_to_zero", lambda _router, _application: False)
    holding = HoldingProxy()
    with ray_internals.without_replicas(holding, "decoder", refused):
        handler = holding.service_handler_factory("/a.B/C", is_stream)
    assert await told(handler, "hi") == (["hi", "last"] if is_stream else ["hi"])
    asking = asyncio.create_task(told(handler, "hold"))
    await soon(holding.held.wait())
    running.clear()
    with pytest.raises(Refused):
        await soon(asking)
    assert holding.ended.is_set()
    with pytest.raises(Refused):
        await told(handler, "hi")


async def test_a_call_outlives_the_last_replica_of_what_is_scaled_to_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    running = {"speech"}
    monkeypatch.setattr(ray_internals, "has_replicas", lambda _router, application: application in running)
    monkeypatch.setattr(ray_internals, "scales_to_zero", lambda _router, application: application == "speech")
    holding = HoldingProxy()
    with ray_internals.without_replicas(holding, "speech", refused):
        handler = holding.service_handler_factory("/a.B/C", False)
    asking = asyncio.create_task(told(handler, "hold"))
    await soon(holding.held.wait())
    holding.held.clear()
    running.clear()
    await soon(holding.held.wait())  # asked again, which has Serve start a replica
    assert holding.ended.is_set()
    asking.cancel()


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


def test_a_counter_can_begin_at_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = list[float]()
    assert names(Metric._record) == ["self", "value", "tags"]
    monkeypatch.setattr(Metric, "_record", lambda _self, value, tags=None: recorded.append(value))
    counter = Counter("autoglm_test", "Nothing.")
    with pytest.raises(ValueError, match="must be >0"):
        counter.inc(0)
    ray_internals.start_at_zero(counter)
    assert recorded == [0]
