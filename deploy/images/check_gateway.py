"""The health check of the gateway's image: the exit status is 0 while /health/ready answers 200 on this machine.

The certificate is not verified: it is for the name by which clients know the gateway. A gateway that asks clients for
certificates (AUTOGLM_SSL_CA_CERTS) refuses this one too.
"""

import os
import ssl
import sys
import urllib.error
import urllib.request

SECONDS = 4.0


def main() -> int:
    """Ask once."""
    port = os.environ.get("AUTOGLM_HTTP_PORT") or "8000"
    scheme = "https" if os.environ.get("AUTOGLM_SSL_CERTFILE") else "http"
    context = ssl._create_unverified_context()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    try:
        with opener.open(f"{scheme}://127.0.0.1:{port}/health/ready", timeout=SECONDS):
            return 0
    except urllib.error.HTTPError as error:
        print(error.read().decode(errors="replace"))
    except OSError as error:
        print(error)
    return 1


if __name__ == "__main__":
    sys.exit(main())
