"""The script that lets parts of a cluster fail: how it counts on both sides, and how it makes the alerts faster."""

import json

import pytest
import yaml
from cluster.accounting import MethodAccount, accounts, untyped
from cluster.alerts import LIMITS, SPEED, faster
from cluster.gateways import access
from cluster.load import CUT_OFF, Ended

from .test_rules import FOLDER, GROUPS

CHAT, COMPLETE = ("http", "/v1/chat/completions"), ("grpc", "ChatService/Complete")


def ended(method: tuple[str, str], request_id: str, outcome: str, code: str, reached: bool = True) -> Ended:
    return Ended("text", *method, request_id, "gateway-1", 0, 1, outcome, outcome == "ok", code, reached)


def test_each_request_is_looked_for_on_the_other_side() -> None:
    seen = [
        ended(CHAT, "a", "ok", "200"),
        ended(CHAT, "b", "cancelled", ""),
        ended(CHAT, "c", "upstream_unavailable", "503"),
        ended(CHAT, "lost", "ok", "200"),
        ended(CHAT, "x", "no connection", "", reached=False),
        ended(COMPLETE, "", "cancelled", ""),
        ended(COMPLETE, "", "ok", "OK"),
        ended(COMPLETE, "", "ok", "OK"),
    ]
    logged = [
        ("a", (*CHAT, "200")),
        ("b", (*CHAT, "499")),
        ("c", (*CHAT, "200")),
        ("stray", (*CHAT, "200")),
        *[("?", (*COMPLETE, code)) for code in ("CANCELLED", "OK", "UNAVAILABLE")],
    ]
    assert accounts(seen, logged) == [
        MethodAccount(*COMPLETE, sent=3, logged=3, missing=0, differing=1),
        MethodAccount(*CHAT, sent=4, logged=4, missing=2, differing=1),
    ]


@pytest.mark.parametrize("outcome", ["untyped 500", CUT_OFF])
def test_what_is_no_typed_error_is_found(outcome: str) -> None:
    wrong = ended(CHAT, "a", outcome, "")
    assert untyped([wrong, ended(CHAT, "b", "upstream_unavailable", "503")]) == [wrong]


@pytest.mark.parametrize(
    ("message", "counted"),
    [
        ("POST /v1/chat/completions 503 12.5ms tenant=me in=1 media=-", (*CHAT, "503")),
        ("ChatService/Complete OK 12.5ms tenant=me in=1 media=-", (*COMPLETE, "OK")),
        ("ChatService/Complete upstream_unavailable 1.0ms tenant=me in=1 media=-", (*COMPLETE, "UNAVAILABLE")),
    ],
)
def test_a_line_of_the_access_log_is_read(message: str, counted: tuple[str, str, str]) -> None:
    line = {"name": "autoglm.gateway.access", "message": message, "request_id": "r"}
    assert access(json.dumps(line)) == ("r", counted)
    assert access("no JSON") is None


def test_alerts_are_only_faster() -> None:
    text = faster((FOLDER / "rules.yaml").read_text(encoding="utf-8"))
    assert all(old not in text and new in text for old, new in LIMITS.items())
    rules = [rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]
    before = [rule for group in GROUPS for rule in group["rules"]]
    assert [rule.get("for") for rule in rules if "alert" in rule] == [
        f"{int(rule['for'].removesuffix('m')) * 60 // SPEED}s" for rule in before if "alert" in rule
    ]
    assert "m]" not in text
    assert "h]" not in text
