"""The TLS certificate of both servers, reloaded when its files change, and the files for TLS to the services."""

import logging
import ssl
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
from cryptography import x509

from autoglm.gateway.file_watcher import FileError, FileWatcher, read
from autoglm.gateway.settings import Settings

logger = logging.getLogger("autoglm.gateway.tls")

EXPIRES_SOON = timedelta(days=14)


@dataclass(frozen=True, slots=True)
class DateProblem:
    """A certificate that is not valid now, or not for long: the message says until when."""

    valid: bool
    message: str


class Certificate:
    """The certificate that both servers present; with `ssl_ca_certs`, clients must present one too (mutual TLS).

    Open connections keep the certificate that they started with.
    """

    def __init__(self, settings: Settings, files: FileWatcher) -> None:
        """Load the files now, and again when they change; raises FileError."""
        self._settings = settings
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
        self._newest = server_context(self._settings)
        if problem := date_problem(self._certfile):
            logger.warning(problem.message)
        self._renewed.append(grpc.ssl_server_certificate_configuration([(key, certificate)], authorities))

    def _take(self) -> grpc.ServerCertificateConfiguration | None:
        """Return the certificate loaded since the last call, if any; called on gRPC's threads."""
        try:
            return self._renewed.pop()
        except IndexError:
            return None


def server_context(settings: Settings) -> ssl.SSLContext:
    """Return what the HTTP server presents and requires; raises FileError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["http/1.1"])
    _load_chain(context, Path(settings.ssl_certfile), Path(settings.ssl_keyfile))
    if settings.ssl_ca_certs:
        context.verify_mode = ssl.CERT_REQUIRED
        check_authorities(Path(settings.ssl_ca_certs), context)
    return context


def services_files(settings: Settings) -> tuple[bytes, bytes | None, bytes | None]:
    """Return the content of the files for TLS to the services: CA certificates, key and certificate chain.

    Raises FileError for files that gRPC would accept, and that would then fail every call.
    """
    authorities = Path(settings.serve_ssl_ca_certs)
    check_authorities(authorities)
    if not settings.serve_ssl_certfile:
        return read(authorities), None, None
    certfile, keyfile = Path(settings.serve_ssl_certfile), Path(settings.serve_ssl_keyfile)
    _load_chain(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), certfile, keyfile)
    return read(authorities), read(keyfile), read(certfile)


def date_problem(path: Path) -> DateProblem | None:
    """Return the problem with the dates of the first certificate in a PEM file, if any; raises FileError."""
    now = datetime.now(UTC)
    try:
        first = x509.load_pem_x509_certificates(read(path))[0]
    except ValueError:  # what is not strictly right, and OpenSSL accepts
        return None
    begin, end = first.not_valid_before_utc, first.not_valid_after_utc
    if now > end:
        return DateProblem(False, f"the certificate in {path} expired on {end:%Y-%m-%d}: renew it")
    if now < begin:
        return DateProblem(False, f"the certificate in {path} is not valid before {begin:%Y-%m-%d %H:%M} UTC")
    if now + EXPIRES_SOON > end:
        return DateProblem(True, f"the certificate in {path} expires on {end:%Y-%m-%d}: renew it soon")
    return None


def check_authorities(path: Path, context: ssl.SSLContext | None = None) -> None:
    """Load CA certificates, into `context` if one is given; raises FileError for a file without any."""
    context = context or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    read(path)  # its error says why a file cannot be read
    try:
        context.load_verify_locations(path)
    except (OSError, ValueError) as error:
        raise FileError(f"{path} contains no certificates in PEM ({_reason(error)})") from None


def _load_chain(context: ssl.SSLContext, certfile: Path, keyfile: Path) -> None:
    for path in (certfile, keyfile):
        read(path)  # its error says why a file cannot be read
    try:
        # Without a password, OpenSSL would prompt at the terminal for that of an encrypted key.
        context.load_cert_chain(certfile, keyfile, password="")
    except (OSError, ValueError) as error:
        raise FileError(
            f"{certfile} and {keyfile} are not a certificate and its key, in PEM and without a password"
            f" ({_reason(error)})"
        ) from None


def _reason(error: Exception) -> str:
    return getattr(error, "reason", None) or type(error).__name__
