"""Variables that are misspelled, that Kubernetes sets, and values that are not what was meant."""

import pytest

from autoglm.common.environment import COMMANDS, GATEWAY, MESH, SERVICES, review


def warnings(reads: frozenset[str] = GATEWAY, **environ: str) -> list[str]:
    found = review(environ, reads)
    assert found.faults == ()
    return list(found.warnings)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("AUTOGLM_APIKEYS", "AUTOGLM_API_KEYS"),
        ("AUTOGLM_API_KEY_FILE", "AUTOGLM_API_KEYS_FILE"),
        ("AUTOGLM_PORT", "AUTOGLM_HTTP_PORT"),
        ("AUTOGLM_SSL_CERT_FILE", "AUTOGLM_SSL_CERTFILE"),
        ("AUTOGLM_MAX_CONCURENT_REQUESTS", "AUTOGLM_MAX_CONCURRENT_REQUESTS"),
        ("AUTOGLM_REDIS", "AUTOGLM_REDIS_URL"),
        ("autoglm_api_key_s", "AUTOGLM_API_KEYS"),
    ],
)
def test_a_misspelled_name_is_told_with_the_nearest(name: str, meant: str) -> None:
    environ = {name: "secret"}
    found = review(environ, GATEWAY)
    assert found.warnings == (f"{name} is not a setting; did you mean {meant}?",)
    assert environ == {}


def test_a_name_like_no_other_is_told_too() -> None:
    assert warnings(AUTOGLM_XYZZY="1") == ["AUTOGLM_XYZZY is not a setting; docs/configuration.md has every setting"]


def test_a_key_of_the_services_is_told_with_its_place() -> None:
    assert warnings(AUTOGLM_MAX_MODEL_LEN="8192") == [
        "AUTOGLM_MAX_MODEL_LEN is not a setting; max_model_len is set in `args` of the Serve config, deploy/serve.yaml"
    ]


@pytest.mark.parametrize("reads", [GATEWAY, MESH])
def test_a_clients_key_at_a_server_without_keys_is_a_misspelling(reads: frozenset[str]) -> None:
    (line,) = warnings(reads, AUTOGLM_API_KEY="secret")
    assert line.startswith("AUTOGLM_API_KEY is not a setting")
    assert line.endswith("did you mean AUTOGLM_API_KEYS?")
    assert "secret" not in line


@pytest.mark.parametrize("name", ["AUTOGLM_API_KEYS", "AUTOGLM_API_KEYS_FILE"])
def test_a_clients_key_beside_those_of_the_server_is_well(name: str) -> None:
    assert review({"AUTOGLM_API_KEY": "k", name: "k"}, GATEWAY).warnings == ()


def test_commands_look_for_their_own_names_first() -> None:
    assert warnings(COMMANDS, AUTOGLM_API_KEY="k", AUTOGLM_URL="u", AUTOGLM_API_KEYS="k", AUTOGLM_HTTP_PORT="1") == []
    assert warnings(COMMANDS, AUTOGLM_APIKEY="k") == ["AUTOGLM_APIKEY is not a setting; did you mean AUTOGLM_API_KEY?"]
    assert warnings(SERVICES, AUTOGLM_TOKEN="k") == [
        "AUTOGLM_TOKEN is not a setting; did you mean AUTOGLM_SERVE_TOKEN?"
    ]


def test_other_variables_are_nobodys_business() -> None:
    environ = {"HOME": " /root ", "MY_AUTOGLM_KEY": "'x'", "autoglm": ""}
    before = dict(environ)
    assert review(environ, MESH).warnings == ()
    assert environ == before


SERVICE = {
    "SERVICE_HOST": "10.0.0.1",
    "SERVICE_PORT": "8000",
    "SERVICE_PORT_HTTP": "8000",
    "PORT": "tcp://10.0.0.1:8000",
    "PORT_8000_TCP": "tcp://10.0.0.1:8000",
    "PORT_8000_TCP_PROTO": "tcp",
    "PORT_8000_TCP_PORT": "8000",
    "PORT_8000_TCP_ADDR": "10.0.0.1",
}


@pytest.mark.parametrize("service", ["AUTOGLM_", "AUTOGLM_GATEWAY_", "AUTOGLM_REDIS_V2_"])
def test_what_kubernetes_sets_for_a_service_is_no_misspelling(service: str) -> None:
    environ = {service + name: value for name, value in SERVICE.items()}
    before = dict(environ)
    assert review(environ, GATEWAY).warnings == ()
    assert environ == before


@pytest.mark.parametrize("name", ["AUTOGLM_PORT", "AUTOGLM_SERVICE_PORT", "AUTOGLM_HTPP_PORT"])
def test_a_port_that_somebody_sets_by_a_wrong_name_is_one(name: str) -> None:
    assert len(review({name: "8000"}, GATEWAY).warnings) == 1


@pytest.mark.parametrize(("short", "service"), [("HTTP_PORT", "autoglm-http"), ("GRPC_PORT", "autoglm-grpc")])
@pytest.mark.parametrize("reads", [GATEWAY, MESH])
def test_a_service_that_takes_the_name_of_a_setting_is_told(short: str, service: str, reads: frozenset[str]) -> None:
    environ = {f"AUTOGLM_{short}": "tcp://10.0.0.1:8000"}
    (fault,) = review(environ, reads).faults
    assert fault.startswith(f"AUTOGLM_{short} is the address that Kubernetes sets for the Service {service}: ")
    assert "enableServiceLinks: false" in fault
    assert "10.0.0.1" not in fault


def test_such_a_service_does_not_stop_what_has_no_port() -> None:
    for reads in (SERVICES, COMMANDS):
        found = review({"AUTOGLM_HTTP_PORT": "tcp://10.0.0.1:8000"}, reads)
        assert (found.warnings, found.faults) == ((), ())


@pytest.mark.parametrize("value", ["'k1'", '"k1,k2"', ' "k1" '])
def test_quotes_that_became_part_of_a_value_are_told(value: str) -> None:
    (fault,) = review({"AUTOGLM_API_KEYS": value}, GATEWAY).faults
    assert fault.startswith("AUTOGLM_API_KEYS is in quotes")
    assert "k1" not in fault


def test_white_space_and_empty_values_mean_nothing() -> None:
    environ = {"AUTOGLM_SERVE_TOKEN": "token\n", "AUTOGLM_HTTP_PORT": "", "AUTOGLM_HOST": "  ", "AUTOGLM_BUNDLE": "/b"}
    assert review(environ, MESH).faults == ()
    assert environ == {"AUTOGLM_SERVE_TOKEN": "token", "AUTOGLM_BUNDLE": "/b"}


def test_small_letters_are_read_and_told() -> None:
    environ = {"autoglm_api_keys": "k1", "Autoglm_Host": "::1", "AUTOGLM_HOST": "127.0.0.1"}
    assert sorted(review(environ, MESH).warnings) == [
        "Autoglm_Host has no effect, because AUTOGLM_HOST is set",
        "autoglm_api_keys is read as AUTOGLM_API_KEYS; write it in capitals",
    ]
    assert environ == {"AUTOGLM_API_KEYS": "k1", "AUTOGLM_HOST": "127.0.0.1"}
