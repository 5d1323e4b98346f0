"""The file of API keys: tenants, their limits, and the SHA-256 of each of their keys, in YAML or JSON.

A key is 256 random bits, so its hash needs neither salt nor slowness: nobody can guess the key from it.
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
    """A tenant; a limit that is not given is that of the settings, and 0 is none."""

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
            raise ValueError(f"tenant {name} is there more than once")
        digests = [digest for tenant in self.tenants for digest in tenant.keys]
        for digest in _repeated(digests):
            raise ValueError(f"key {digest[:ID_DIGITS]} is there more than once")
        if digest_of(OPEN_KEY) in digests:
            raise ValueError(f"{OPEN_KEY} is what clients send to an open server; it cannot be a key")
        return self

    def add_key(self, name: str) -> str:
        """Return a new key of a tenant, which is added if it is not there; raises ValueError for a bad name."""
        key = PREFIX + secrets.token_urlsafe(KEY_BYTES)
        self._tenant(name).keys.append(digest_of(key))
        return key

    def limit(self, name: str, requests_per_minute: int | None, max_concurrent_requests: int | None) -> None:
        """Set a tenant's limits, but those that are None."""
        tenant = self._tenant(name)
        if requests_per_minute is not None:
            tenant.requests_per_minute = requests_per_minute
        if max_concurrent_requests is not None:
            tenant.max_concurrent_requests = max_concurrent_requests

    def remove_key(self, key_id: str) -> str:
        """Remove a key and return whose it was; raises ValueError when there is none with this id."""
        for tenant in self.tenants:
            for digest in tenant.keys:
                if digest[:ID_DIGITS] == key_id:
                    tenant.keys.remove(digest)
                    return tenant.name
        raise ValueError(f"there is no key {key_id}: see `autoglm keys list`")

    def _tenant(self, name: str) -> TenantEntry:
        for tenant in self.tenants:
            if tenant.name == name:
                return tenant
        try:
            self.tenants.append(TenantEntry(name=name))
        except ValidationError:
            raise ValueError("a tenant's name is of up to 64 letters, digits, '.', '_' and '-'") from None
        return self.tenants[-1]


def digest_of(key: str) -> str:
    """Return the SHA-256 of a key, in hexadecimal digits."""
    return hashlib.sha256(key.encode()).hexdigest()


def key_id(key: str) -> str:
    """Return what a key is called where it must not be seen: the first digits of its hash."""
    return digest_of(key)[:ID_DIGITS]


def load(path: Path) -> KeyFile:
    """Return what the file says; raises FileError."""
    raw = read(path)
    try:
        return KeyFile.model_validate(yaml.safe_load(raw) or {})
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(step) for step in wrong["loc"])
        raise FileError(f"{path}: {place + ': ' if place else ''}{wrong['msg']}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that is none, and the like
        mark = getattr(error, "problem_mark", None)
        raise FileError(f"{path} is neither YAML nor JSON{f' at line {mark.line + 1}' if mark else ''}") from None


def save(path: Path, content: KeyFile) -> None:
    """Write the file whole or not at all, for its owner's eyes alone; raises FileError."""
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
