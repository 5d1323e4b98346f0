"""Settings of hosts and networks that media may be fetched from, which are refused at the start."""

from typing import Any

import pytest
from pydantic import ValidationError

from autoglm.gateway.settings import Settings


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"allowed_media_domains": "https://a.example"}, "https://a.example is not a host"),
        ({"allowed_media_domains": "a.example,127.0.0.1"}, "127.0.0.1 is not a host"),
        ({"allowed_media_domains": "a.*.example"}, "is not a host"),
        ({"allowed_media_domains": "*example"}, "is not a host"),
        ({"allowed_media_domains": "bücher.example"}, "is not a host"),
        ({"allowed_media_domains": "a.example:0"}, "is not a host"),
        ({"allowed_private_networks": "10.0.0.1/8"}, "has host bits set"),
        ({"allowed_private_networks": "inside"}, "does not appear to be an IPv4 or IPv6 network"),
        ({"media_fetch_timeout": 0}, "greater than 0"),
    ],
)
def test_settings_that_say_nothing(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        Settings(**given)
