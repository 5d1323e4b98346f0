"""Measures a scrape: how many samples, how many bytes, and how long it takes.

`python tools/scrape.py http://127.0.0.1:8000/metrics [URL ...]` asks each address ten times, as Prometheus does.
"""

import statistics
import sys
import time
import urllib.request

ROUNDS = 10
ACCEPT = "application/openmetrics-text;version=1.0.0;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"


def scrape(url: str) -> tuple[str, float]:
    """Return what is served at `url`, and the seconds until it has arrived."""
    request = urllib.request.Request(url, headers={"accept": ACCEPT})
    started = time.perf_counter()
    with urllib.request.urlopen(request) as response:
        text = response.read().decode()
    return text, time.perf_counter() - started


def main() -> None:
    """Print a line for each address."""
    for url in sys.argv[1:]:
        scrapes = [scrape(url) for _ in range(ROUNDS)]
        text, times = scrapes[-1][0], [seconds * 1000 for _, seconds in scrapes]
        lines = [line for line in text.splitlines() if line and not line.startswith("#")]
        own = sum("autoglm_" in line.partition("{")[0] for line in lines)
        median, most = statistics.median(times), max(times)
        print(
            f"{url}: {len(lines)} samples ({own} of autoglm_), {len(text)} bytes, {median:.1f} ms (at most {most:.1f})"
        )


if __name__ == "__main__":
    main()
