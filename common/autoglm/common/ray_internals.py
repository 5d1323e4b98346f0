"""Every private part of Ray that the mesh uses, in one place. tests/unit/common checks them on the pinned version.

Ray is imported inside the functions: the module can be imported where Ray is not installed.
"""

import asyncio
import inspect
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager, suppress
from copy import copy
from functools import partial
from typing import Any, TypeVar

from autoglm.common.logs import PollFilter, RequestFilter

logger = logging.getLogger("ray.serve")

# Takes a request, its gRPC context, and whether the application is scaled to zero. Ends the call, or returns its
# serialized response, or None to have Serve start a replica and hold the call until that answers.
Absent = Callable[[Any, Any, bool], Awaitable[bytes | None]]
Answer = TypeVar("Answer")

SETUP_HOOK = "__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR"  # the function that each worker calls when it starts
FALLBACK_PROXY = "gRPCProxy"  # the class in ray.serve._private.proxy
HAPROXY_RETRY_SECONDS = 0.5
VANISHED_SECONDS = 16
CONDITION_SECONDS = 0.5  # between two looks at what runs
UNNEEDED_PROCESSES = ("start_monitor", "start_log_monitor", "start_api_server")  # 170 MB together


def set_up_worker() -> None:
    """Change Serve in this process. A worker of Ray calls this when it starts if `SETUP_HOOK` names this function."""
    listen_on_loopback()
    change_haproxy()


def change_haproxy() -> None:
    """Have HAProxy started again as soon as it ends, and notice nodes that vanish. In a cluster, `SETUP_HOOK` names
    this function."""
    restart_haproxy()
    notice_vanished_nodes()


def listen_on_loopback() -> None:
    """Have what Serve opens in this process listen on loopback; it uses all interfaces, whatever its node's address."""
    from ray.serve._private import default_impl, haproxy, replica

    default_impl.add_grpc_address = _on_loopback(default_impl.add_grpc_address)
    replica.add_port_to_grpc_server = _on_loopback(replica.add_port_to_grpc_server)
    haproxy.HAPROXY_CONFIG_TEMPLATE = closed_template(haproxy.HAPROXY_CONFIG_TEMPLATE)


def _on_loopback(add_port: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
    return lambda server, address: add_port(server, address.replace("[::]", "127.0.0.1"))


def closed_template(template: str) -> str:
    """Return HAProxy's template with statistics and metrics on loopback, and an admin socket for this user alone."""
    for opened, closed in (
        ("bind :{{ config.metrics_port }}", "bind 127.0.0.1:{{ config.metrics_port }}"),
        ("bind *:{{ config.stats_port }}", "bind 127.0.0.1:{{ config.stats_port }}"),
        ("{{ config.socket_path }} mode 666", "{{ config.socket_path }} mode 600"),
    ):
        template = template.replace(opened, closed)
    return template


def notice_vanished_nodes() -> None:
    """Have HAProxy end its connections to a node that does not acknowledge anything for VANISHED_SECONDS.

    A node that loses power closes none. What waits for it would wait to its deadline.
    """
    from ray.serve._private import haproxy

    haproxy.HAPROXY_CONFIG_TEMPLATE = watchful_template(haproxy.HAPROXY_CONFIG_TEMPLATE)


def watchful_template(template: str) -> str:
    """Return HAProxy's template with TCP's keepalive and user timeout on connections to replicas. The kernel of a node
    answers both, however busy its replicas are."""
    before = "    option abortonclose\n"  # among the defaults
    options = (
        "option srvtcpka",
        f"srvtcpka-idle {VANISHED_SECONDS // 2}s",
        f"srvtcpka-intvl {VANISHED_SECONDS // 4}s",
        "srvtcpka-cnt 2",
        f"default-server tcp-ut {VANISHED_SECONDS}s",
    )
    return template.replace(before, before + "".join(f"    {option}\n" for option in options), 1)


def restart_haproxy() -> None:
    """Have HAProxy's manager start it again as soon as it ends.

    Otherwise Serve's health checks find this out, and replace the manager too, which takes seconds longer. They still
    do if HAProxy cannot be started again.
    """
    from ray.serve._private import haproxy

    class RestartingHAProxy(haproxy.HAProxyApi):  # type: ignore[misc]  # Ray has no types for it
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self._changing = asyncio.Lock()
            self._restarts: asyncio.Task[None] | None = None

        async def start(self) -> None:
            await super().start()
            self._restarts = asyncio.create_task(self._keep_running())

        async def stop(self) -> None:
            async with self._changing:
                if self._restarts is not None:
                    self._restarts.cancel()
                await super().stop()

        async def _graceful_reload(self) -> None:
            async with self._changing:
                await super()._graceful_reload()

        async def _keep_running(self) -> None:
            while (process := self._proc) is not None:
                await process.wait()
                async with self._changing:
                    if self._proc is process:  # not the one before a reload
                        logger.warning("HAProxy ended with status %s, starting it again", process.returncode)
                        await self._restart(process)

        async def _restart(self, ended: asyncio.subprocess.Process) -> None:
            try:
                self._proc = await self._start_and_wait_for_haproxy()
                self._old_procs.append(ended)  # the next reload keeps or removes its logs
            except (RuntimeError, OSError) as error:
                logger.warning("%s", error)
                await asyncio.sleep(HAPROXY_RETRY_SECONDS)

    haproxy.HAProxyApi = RestartingHAProxy


def is_fallback_proxy(server: Any) -> bool:
    """Return whether a gRPC server is that of the proxy that Serve's HAProxy falls back to, not that of a replica."""
    owner = getattr(getattr(server, "service_handler_factory", None), "__self__", None)
    return os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1" and type(owner).__name__ == FALLBACK_PROXY


@contextmanager
def without_replicas(server: Any, application: str, absent: Absent) -> Iterator[None]:
    """Have the fallback proxy's `server` ask `absent` about calls of the service that is registered in the block while
    the application has no replica. While it has, the proxy passes them on, as it always would.

    HAProxy falls back to it also for a moment when an application is deployed again, while its replicas run. A call is
    refused too if the last replica dies before its answer begins, as with a node that loses power: Serve would hold it
    until a replica is back.
    """
    factory = server.service_handler_factory
    router = factory.__self__.proxy_router

    def runs() -> bool:
        return has_replicas(router, application)

    def make(service_method: str, streaming_type: Any) -> Any:
        handler = factory(service_method, streaming_type)

        async def unary(request: Any, context: Any) -> Any:
            if runs():
                with suppress(Untrue):
                    return await while_true(runs, handler(request, context))
            response = await absent(request, context, scales_to_zero(router, application))
            return await handler(request, context) if response is None else response

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            async with aclosing(handler(request, context)) as messages:
                try:
                    first = await while_true(runs, anext(messages, None))
                except Untrue:  # of the decoder, which is never scaled to zero
                    await absent(request, context, False)
                    return
                if first is not None:
                    yield first
                async for message in messages:
                    yield message

        return stream if inspect.isasyncgenfunction(handler) else unary

    server.service_handler_factory = make
    try:
        yield
    finally:
        server.service_handler_factory = factory


class Untrue(Exception):
    """A condition for waiting no longer holds."""


async def while_true(condition: Callable[[], bool], awaited: Awaitable[Answer]) -> Answer:
    """Return what `awaited` returns; cancels it and raises Untrue as soon as `condition` does not hold."""
    task = asyncio.ensure_future(awaited)
    try:
        while not task.done():
            if not condition():
                raise Untrue
            await asyncio.wait([task], timeout=CONDITION_SECONDS)
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait([task])


def has_replicas(router: Any, application: str) -> bool:
    """Return whether a proxy's router knows a replica of an application that has not died."""
    if (routing := _routing(router, application)) is None:
        return False
    chooser = routing._request_router  # made with the first request
    return bool(routing._running_replicas if chooser is None else chooser.curr_replicas)


def scales_to_zero(router: Any, application: str) -> bool:
    """Return whether Serve may stop every replica of an application that a proxy's router knows, and starts one for the
    next call."""
    routing = _routing(router, application)
    scaling = None if routing is None else routing._metrics_manager.autoscaling_config
    return scaling is not None and scaling.min_replicas == 0


def _routing(router: Any, application: str) -> Any:
    found = router.get_handle_for_endpoint(application)
    return None if found is None else found[1]._router._asyncio_router


class _TextWithTrace(logging.Formatter):
    """Serve's own text, which has the request's id but not its trace's."""

    def __init__(self, text: logging.Formatter) -> None:
        super().__init__()
        self._text = text

    def format(self, record: logging.LogRecord) -> str:
        if hasattr(record, "trace_id"):
            record = copy(record)
            record.msg, record.args = f"trace_id={record.trace_id} {record.getMessage()}", ()
        return self._text.format(record)


def log_through_serve() -> None:
    """Write the lines of the mesh's loggers to Serve's log, with their levels, put the ids of requests and traces into
    all of its lines, and leave out those about health polls."""
    serve = logging.getLogger("ray.serve")
    logging.getLogger("autoglm").parent = serve
    serve.addFilter(PollFilter())  # before its handlers, whose own filters take away what tells access lines apart
    for handler in serve.handlers:
        handler.addFilter(RequestFilter())
        target = getattr(handler, "target", handler)  # of one that collects lines
        text = target.formatter
        if text is not None and type(text).__name__ == "ServeFormatter":
            target.setFormatter(_TextWithTrace(text))


def slim_start(agent_ports: Mapping[str, int]) -> None:
    """Patch `ray.init` for a single machine: without the processes that only a dashboard or a cluster needs, and with
    the given ports for Ray's agents.

    Ray waits 15 s for its agents to choose ports themselves and then gives up; on a busy machine they take longer.
    """
    from ray._private import parameter
    from ray._private.node import Node

    for name in UNNEEDED_PROCESSES:
        setattr(Node, name, _start_nothing)
    parameter.RayParams = partial(parameter.RayParams, **agent_ports)


def with_options(application: Any, deployments: Sequence[Mapping[str, Any]]) -> Any:
    """Return a Serve application of one deployment with the options of `deployments`, as Serve's REST API applies them.

    Raises ValueError for a deployment that it does not have, TypeError or ValueError for an option.
    """
    bound = application._bound_deployment
    for options in deployments:
        if (name := options.get("name")) != bound.name:
            raise ValueError(f"there is no deployment {name}, only {bound.name}")
        bound = bound.options(**options)
    return type(application)(bound)


def start_at_zero(counter: Any, **labels: str) -> None:
    """Have a counter of Ray's, with these labels of its own, exist before the first event; its `inc` takes no 0."""
    counter._record(0.0, labels)


def _start_nothing(node: Any, **_options: object) -> None:
    node._webui_url = None
