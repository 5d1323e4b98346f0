"""The server's certificate, one for both doors, taken anew when its files change."""

import ssl
from collections import deque
from pathlib import Path

import grpc

from autoglm.gateway.file_watcher import FileError, Files, read
from autoglm.gateway.settings import Settings


class Certificate:
    """What both doors show, and with `ssl_ca_certs` whom they ask for a certificate. Open connections keep theirs."""

    def __init__(self, settings: Settings, files: Files) -> None:
        """Read the files now and when they change; raises FileError."""
        self._certfile, self._keyfile = Path(settings.ssl_certfile), Path(settings.ssl_keyfile)
        self._ca_certs = Path(settings.ssl_ca_certs) if settings.ssl_ca_certs else None
        self._renewed: deque[grpc.ServerCertificateConfiguration] = deque(maxlen=1)  # what gRPC has not taken yet
        files.follow("ssl", [path for path in (self._certfile, self._keyfile, self._ca_certs) if path], self._load)

    def context(self) -> ssl.SSLContext:
        """Return what a listening socket uses for good: each handshake goes on with the newest certificate."""
        first = self._newest

        def choose(connection: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _first: ssl.SSLContext) -> None:
            connection.context = self._newest

        first.sni_callback = choose
        return first

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """Return credentials for a gRPC server, which asks for a newer certificate before each handshake."""
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
            # With no password at all a key that has one would be asked for at the terminal.
            context.load_cert_chain(self._certfile, self._keyfile, password="")
        except (OSError, ValueError) as error:
            raise FileError(
                f"{self._certfile} and {self._keyfile} are no certificate and its key, in PEM and without a password"
                f" ({_reason(error)})"
            ) from None
        if self._ca_certs:
            context.verify_mode = ssl.CERT_REQUIRED
            try:
                context.load_verify_locations(self._ca_certs)
            except (OSError, ValueError) as error:
                raise FileError(f"{self._ca_certs} holds no certificates in PEM ({_reason(error)})") from None
        return context

    def _take(self) -> grpc.ServerCertificateConfiguration | None:
        """Return what has changed since the last time; called on gRPC's threads."""
        try:
            return self._renewed.pop()
        except IndexError:
            return None


def _reason(error: Exception) -> str:
    return getattr(error, "reason", None) or type(error).__name__
