"""The files that settings name: each is read and checked as the gateway's start does it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from autoglm.gateway import tls
from autoglm.gateway.admission import key_file
from autoglm.gateway.file_watcher import FileError
from autoglm.gateway.settings import Settings


@dataclass(slots=True)
class FileReport:
    """The variables whose files are usable, and a line for each problem: `faults` stop a start, `expired` certificates
    stop clients, `warnings` do neither yet."""

    variables: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    expired: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @contextmanager
    def reading(self, *variables: str) -> Iterator[None]:
        """Report the FileError that the block raises as a fault of `variables`."""
        try:
            yield
        except FileError as error:
            self.faults.append(f"{', '.join(variables)}: {error}")
        else:
            self.variables += variables

    def check_dates(self, certificate: str) -> None:
        """Report a certificate that has expired or soon will; raises FileError."""
        if problem := tls.date_problem(Path(certificate)):
            (self.warnings if problem.valid else self.expired).append(problem.message)


def read_files(settings: Settings) -> FileReport:
    """Read the files that `settings` and SSL_CERT_FILE name."""
    report = FileReport()
    if settings.api_keys_file:
        _read_keys(settings, report)
    if settings.ssl_certfile:
        _read_certificate(settings, report)
    if settings.serve_ssl_ca_certs:
        _read_services_files(settings, report)
    if authorities := os.environ.get("SSL_CERT_FILE"):
        with report.reading("SSL_CERT_FILE"):
            tls.check_authorities(Path(authorities))
    return report


def _read_keys(settings: Settings, report: FileReport) -> None:
    with report.reading("AUTOGLM_API_KEYS_FILE"):
        found = key_file.load(Path(settings.api_keys_file))
        if not (settings.keys or any(tenant.keys for tenant in found.tenants)):
            report.warnings.append(f"{settings.api_keys_file} has no key: every request is refused")


def _read_certificate(settings: Settings, report: FileReport) -> None:
    authorities = ["AUTOGLM_SSL_CA_CERTS"] if settings.ssl_ca_certs else []
    with report.reading("AUTOGLM_SSL_CERTFILE", "AUTOGLM_SSL_KEYFILE", *authorities):
        tls.server_context(settings)
        report.check_dates(settings.ssl_certfile)


def _read_services_files(settings: Settings, report: FileReport) -> None:
    own = ["AUTOGLM_SERVE_SSL_CERTFILE", "AUTOGLM_SERVE_SSL_KEYFILE"] if settings.serve_ssl_certfile else []
    with report.reading("AUTOGLM_SERVE_SSL_CA_CERTS", *own):
        tls.services_files(settings)
        for certificate in filter(None, (settings.serve_ssl_certfile, settings.serve_ssl_ca_certs)):
            report.check_dates(certificate)
