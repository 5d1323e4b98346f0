"""The key file: tenants, their limits, and the SHA-256 of each of their API keys, in YAML or JSON.

A key is 256 random bits, so a plain hash is enough: it cannot be reversed by guessing, with or without a salt.
"""

import hashlib
import json
import os
import secrets
import tempfile
from collections import Counter
from pathlib import Path
from typing import Annotated, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError, model_validator

from autoglm.gateway.file_watcher import FileError, read
from autoglm.gateway.settings import OPEN_KEY

PREFIX = "ag-"
KEY_BYTES = 32
ID_DIGITS = 12

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class TenantEntry(BaseModel):
    """A tenant. A missing limit falls back to the settings; 0 means no limit."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    requests_per_minute: NonNegativeInt | None = None
    max_concurrent_requests: NonNegativeInt | None = None
    keys: list[Digest] = []


class KeyFile(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="forbid")

    tenants: list[TenantEntry] = []

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in _repeated([tenant.name for tenant in self.tenants]):
            raise ValueError(f"tenant {name} is listed more than once")
        digests = [digest for tenant in self.tenants for digest in tenant.keys]
        for digest in _repeated(digests):
            raise ValueError(f"key {digest[:ID_DIGITS]} is listed more than once")
        if digest_of(OPEN_KEY) in digests:
            raise ValueError(f"{OPEN_KEY} is what clients send to a server without keys, so it cannot be a key")
        return self

    def add_key(self, name: str) -> str:
        """Return a new key for a tenant, creating the tenant if needed; raises ValueError for an invalid name."""
        key = PREFIX + secrets.token_urlsafe(KEY_BYTES)
        self._tenant(name).keys.append(digest_of(key))
        return key

    def limit(self, name: str, requests_per_minute: int | None, max_concurrent_requests: int | None) -> None:
        """Set those of a tenant's limits that are not None."""
        tenant = self._tenant(name)
        if requests_per_minute is not None:
            tenant.requests_per_minute = requests_per_minute
        if max_concurrent_requests is not None:
            tenant.max_concurrent_requests = max_concurrent_requests

    def remove_key(self, key_id: str) -> str:
        """Remove a key and return its tenant's name; raises ValueError for an unknown id."""
        for tenant in self.tenants:
            for digest in tenant.keys:
                if digest[:ID_DIGITS] == key_id:
                    tenant.keys.remove(digest)
                    return tenant.name
        raise ValueError(f"no key has the id {key_id}: see `autoglm keys list`")

    def _tenant(self, name: str) -> TenantEntry:
        for tenant in self.tenants:
            if tenant.name == name:
                return tenant
        try:
            self.tenants.append(TenantEntry(name=name))
        except ValidationError:
            raise ValueError(
                "a tenant's name is 1 to 64 letters, digits, '.', '_' and '-', starting with a letter or digit"
            ) from None
        return self.tenants[-1]


def digest_of(key: str) -> str:
    """Return the SHA-256 of a key, in hexadecimal digits."""
    return hashlib.sha256(key.encode()).hexdigest()


def key_id(key: str) -> str:
    """Return the id that stands for a key in lists and logs: the first digits of its hash."""
    return digest_of(key)[:ID_DIGITS]


def load(path: Path) -> KeyFile:
    """Load and validate the file; raises FileError."""
    raw = read(path)
    try:
        return KeyFile.model_validate(yaml.safe_load(raw) or {})
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(step) for step in wrong["loc"])
        raise FileError(f"{path}: {field + ': ' if field else ''}{wrong['msg']}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an impossible date, for example
        mark = getattr(error, "problem_mark", None)
        raise FileError(f"{path} is neither YAML nor JSON{f' at line {mark.line + 1}' if mark else ''}") from None


def save(path: Path, content: KeyFile) -> None:
    """Write the file atomically, readable by its owner only; raises FileError."""
    plain = content.model_dump(exclude_none=True)
    text = json.dumps(plain, indent=2) + "\n" if path.suffix == ".json" else yaml.safe_dump(plain, sort_keys=False)
    try:
        target = path.resolve()  # a symbolic link stays one
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".keys-") as folder:
            new = Path(folder) / target.name
            new.touch(mode=0o600)
            with new.open("w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            new.replace(target)
    except OSError as error:
        raise FileError(f"{path} cannot be written ({error.strerror})") from None


def _repeated(values: list[str]) -> list[str]:
    return [value for value, count in Counter(values).items() if count > 1]
