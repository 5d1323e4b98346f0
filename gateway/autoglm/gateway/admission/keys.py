"""Authentication: API keys and their tenants, from the settings and from a file that is reloaded when it changes."""

import hashlib
import hmac
import logging
from collections.abc import Collection
from pathlib import Path

from autoglm.common.errors import AuthenticationFailed
from autoglm.gateway.admission import key_file
from autoglm.gateway.admission.key_file import TenantEntry
from autoglm.gateway.context import Tenant
from autoglm.gateway.file_watcher import FileWatcher
from autoglm.gateway.media.cache import tenant_hash
from autoglm.gateway.settings import Settings

logger = logging.getLogger("autoglm.gateway.keys")

Known = tuple[tuple[bytes, Tenant], ...]  # the SHA-256 of a key, and its tenant


class Keys:
    """Maps keys to tenants. With no keys configured, everyone is one tenant; an empty key file lets no one in."""

    def __init__(self, settings: Settings, files: FileWatcher) -> None:
        """Load the keys, and reload those of the file when it changes; raises FileError."""
        self._settings = settings
        self._listed: Known = tuple(
            (hashlib.sha256(key.encode()).digest(), self._tenant("env", key)) for key in settings.keys
        )
        self._filed: Known = ()
        self._open = settings.is_open
        self._anonymous = self._tenant("anonymous", None)
        if settings.api_keys_file:
            self._path = Path(settings.api_keys_file)
            files.follow("api_keys_file", [self._path], self._load)

    def tenant(self, authorizations: Collection[str]) -> Tenant:
        """Return the tenant of the key in a request's headers `authorization`; raises AuthenticationFailed.

        Headers that differ are refused: a proxy in front may have checked another one than this server would.
        """
        if self._open:
            return self._anonymous
        different = set(authorizations)
        if len(different) > 1:
            raise AuthenticationFailed("the request has authorization headers that differ: send one")
        scheme, _, given = "".join(different).partition(" ")
        if scheme.lower() != "bearer" or not given:
            raise AuthenticationFailed("an API key is required: send it as authorization: Bearer <key>")
        digest = hashlib.sha256(given.strip().encode()).digest()
        # Every key is compared, so that the time taken reveals nothing about any of them.
        owners = [tenant for known, tenant in (*self._filed, *self._listed) if hmac.compare_digest(known, digest)]
        if not owners:
            raise AuthenticationFailed("the API key is not valid")
        return owners[0]

    def _load(self) -> None:
        entries = key_file.load(self._path).tenants
        self._filed = tuple(
            (bytes.fromhex(digest), tenant)
            for entry, tenant in ((entry, self._tenant_of(entry)) for entry in entries)
            for digest in entry.keys
        )
        if not (self._filed or self._listed):
            logger.warning("%s has no key: every request is refused; `autoglm keys create` adds one", self._path)

    def _tenant_of(self, entry: TenantEntry) -> Tenant:
        known_by = f"tenant\n{entry.name}"  # a key has no line break, so a tenant's name never equals one
        return self._tenant(entry.name, known_by, entry.requests_per_minute, entry.max_concurrent_requests)

    def _tenant(self, name: str, known_by: str | None, rate: int | None = None, at_once: int | None = None) -> Tenant:
        settings = self._settings
        return Tenant(
            name=name,
            id=tenant_hash(settings.cache_secret.get_secret_value(), known_by),
            requests_per_minute=settings.tenant_requests_per_minute if rate is None else rate,
            max_concurrent_requests=settings.tenant_max_concurrent_requests if at_once is None else at_once,
        )
