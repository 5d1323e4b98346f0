"""The TLS certificate of both servers, reloaded when its files change."""

import ssl
from collections import deque
from pathlib import Path

import grpc

from autoglm.gateway.file_watcher import FileError, FileWatcher, read
from autoglm.gateway.settings import Settings


class Certificate:
    """The certificate that both servers present; with `ssl_ca_certs`, clients must present one too (mutual TLS).

    Open connections keep the certificate that they started with.
    """

    def __init__(self, settings: Settings, files: FileWatcher) -> None:
        """Load the files now, and again when they change; raises FileError."""
        self._certfile, self._keyfile = Path(settings.ssl_certfile), Path(settings.ssl_keyfile)
        self._ca_certs = Path(settings.ssl_ca_certs) if settings.ssl_ca_certs else None
        self._renewed: deque[grpc.ServerCertificateConfiguration] = deque(maxlen=1)  # until gRPC takes it
        files.follow("ssl", [path for path in (self._certfile, self._keyfile, self._ca_certs) if path], self._load)

    def context(self) -> ssl.SSLContext:
        """Return a context for a listening socket, which switches to the newest certificate in each handshake."""
        first = self._newest

        def choose(connection: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _first: ssl.SSLContext) -> None:
            connection.context = self._newest

        first.sni_callback = choose
        return first

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """Return credentials for a gRPC server, which fetches a newer certificate before each handshake."""
        mutual = self._ca_certs is not None
        return grpc.dynamic_ssl_server_credentials(self._renewed.pop(), self._take, mutual)  # type: ignore[arg-type]

    def _load(self) -> None:
        certificate, key = read(self._certfile), read(self._keyfile)
        authorities = read(self._ca_certs) if self._ca_certs else None
        self._newest = self._new_context()
        self._renewed.append(grpc.ssl_server_certificate_configuration([(key, certificate)], authorities))

    def _new_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_alpn_protocols(["http/1.1"])
        try:
            # Without a password, OpenSSL would prompt at the terminal for that of an encrypted key.
            context.load_cert_chain(self._certfile, self._keyfile, password="")
        except (OSError, ValueError) as error:
            raise FileError(
                f"{self._certfile} and {self._keyfile} are not a certificate and its key, in PEM and without a password"
                f" ({_reason(error)})"
            ) from None
        if self._ca_certs:
            context.verify_mode = ssl.CERT_REQUIRED
            try:
                context.load_verify_locations(self._ca_certs)
            except (OSError, ValueError) as error:
                raise FileError(f"{self._ca_certs} contains no certificates in PEM ({_reason(error)})") from None
        return context

    def _take(self) -> grpc.ServerCertificateConfiguration | None:
        """Return the certificate loaded since the last call, if any; called on gRPC's threads."""
        try:
            return self._renewed.pop()
        except IndexError:
            return None


def _reason(error: Exception) -> str:
    return getattr(error, "reason", None) or type(error).__name__
