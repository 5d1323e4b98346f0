"""Who may call a service."""

from dataclasses import dataclass

import grpc
import pytest

from autoglm.common.server import authenticate


@dataclass
class SomeCaller:
    """A call whose metadata has this authorization."""

    shown: str
    failed: grpc.StatusCode | None = None

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return [("authorization", self.shown)] if self.shown else []

    def set_code(self, code: grpc.StatusCode) -> None:
        self.failed = code

    def code(self) -> grpc.StatusCode | None:
        return self.failed

    def set_details(self, details: str) -> None: ...

    def set_trailing_metadata(self, metadata: list[tuple[str, str | bytes]]) -> None: ...


@pytest.mark.parametrize("setting", ["new", "new,old", " old , new "])
@pytest.mark.parametrize("shown", ["", "Bearer ", "new", "Bearer new,old", "Bearer x", "Bearer new", "Bearer old"])
def test_a_service_accepts_each_of_its_tokens(setting: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOGLM_SERVE_TOKEN", setting)
    caller = SomeCaller(shown)
    accepted = shown in {f"Bearer {token.strip()}" for token in setting.split(",")}
    assert authenticate(caller) == accepted
    assert caller.code() == (None if accepted else grpc.StatusCode.UNAUTHENTICATED)


@pytest.mark.parametrize(("setting", "answers"), [("", True), (",", False)])
def test_only_an_empty_setting_lets_everyone_in(setting: str, answers: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOGLM_SERVE_TOKEN", setting)
    assert authenticate(SomeCaller("")) is answers
