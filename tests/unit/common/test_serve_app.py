"""The start of a replica, as far as its environment decides it."""

import gc

import pytest
import torch

from autoglm.common.ray_internals import with_options
from autoglm.common.serve_app import application, load_servicer
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
    assert load_servicer("vision", load, settings).startswith("loaded")
    (record,) = caplog.records
    assert record.getMessage() == "AUTOGLM_SERVE_TOKENS is not a setting; did you mean AUTOGLM_SERVE_TOKEN?"


def test_a_token_in_quotes_ends_the_start_of_the_replica(
    settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOGLM_SERVE_TOKEN", "'token'")
    with pytest.raises(ValueError, match=r"^AUTOGLM_SERVE_TOKEN is in quotes"):
        load_servicer("vision", load, settings)


@pytest.mark.parametrize(("longest", "grace"), [("", 3630), ("600", 630)])
def test_a_replica_that_ends_finishes_its_answers(
    settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch, longest: str, grace: int
) -> None:
    monkeypatch.setenv("AUTOGLM_MAX_TIMEOUT", longest)
    bound = application(object, settings)._bound_deployment
    assert bound._deployment_config.graceful_shutdown_timeout_s == grace


def test_a_longest_time_that_is_no_number_is_named(settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOGLM_MAX_TIMEOUT", "1h")
    with pytest.raises(ValueError, match=r"^AUTOGLM_MAX_TIMEOUT: give a number of seconds"):
        application(object, settings)


def test_options_of_the_serve_config_replace_those_of_the_code(settings: ServiceSettings) -> None:
    options = {"name": "Replica", "num_replicas": 2, "max_queued_requests": 7}
    bound = with_options(application(type("Replica", (), {}), settings), [options])._bound_deployment
    assert (bound.num_replicas, bound._deployment_config.max_queued_requests) == (2, 7)
    assert bound.init_args == (settings.model_dump(),)
    assert bound.ray_actor_options["num_cpus"] == settings.num_cpus


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"name": "Other"}, "no deployment Other, only Replica"),
        ({}, "no deployment None"),
        ({"name": "Replica", "replicas": 2}, "replicas"),
    ],
)
def test_options_that_cannot_be_meant_are_errors(
    settings: ServiceSettings, options: dict[str, object], error: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=error):
        with_options(application(type("Replica", (), {}), settings), [options])


def test_what_is_loaded_is_not_looked_through_again(settings: ServiceSettings) -> None:
    """A collection of everything that torch and a model hold would stop all threads for a quarter of a second."""
    kept: list[list[str]] = []

    def load_list(_: ServiceSettings) -> str:
        kept.append(["loaded"])
        return "loaded"

    try:
        load_servicer("vision", load_list, settings)
        assert not any(each is kept[0] for each in gc.get_objects())
    finally:
        gc.unfreeze()
