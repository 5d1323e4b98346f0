"""The start of a replica, as far as its environment decides it."""

import gc

import pytest
import torch

from autoglm.common.serve_app import load_servicer
from autoglm.common.serve_settings import ServiceSettings


def load(settings: ServiceSettings) -> str:
    return f"loaded with {settings.threads}"


@pytest.fixture
def settings() -> ServiceSettings:
    return ServiceSettings.model_validate({"threads": torch.get_num_threads()})


def test_a_misspelled_token_is_in_the_log_of_the_replica(
    settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AUTOGLM_SERVE_TOKENS", "secret")
    monkeypatch.setenv("AUTOGLM_HTTP_PORT", "tcp://10.0.0.1:8000")  # of a Service; replicas do not read it
    assert load_servicer(load, settings).startswith("loaded")
    (record,) = caplog.records
    assert record.getMessage() == "AUTOGLM_SERVE_TOKENS is not a setting; did you mean AUTOGLM_SERVE_TOKEN?"


def test_a_token_in_quotes_ends_the_start_of_the_replica(
    settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOGLM_SERVE_TOKEN", "'token'")
    with pytest.raises(ValueError, match=r"^AUTOGLM_SERVE_TOKEN is in quotes"):
        load_servicer(load, settings)


def test_what_is_loaded_is_not_looked_through_again(settings: ServiceSettings) -> None:
    """A collection of everything that torch and a model hold would stop all threads for a quarter of a second."""
    kept: list[list[str]] = []

    def load_list(_: ServiceSettings) -> str:
        kept.append(["loaded"])
        return "loaded"

    try:
        load_servicer(load_list, settings)
        assert not any(each is kept[0] for each in gc.get_objects())
    finally:
        gc.unfreeze()
