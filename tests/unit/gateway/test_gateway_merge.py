"""Several choices of one request, joined as they come."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from autoglm.common.errors import UpstreamUnavailable
from autoglm.gateway.tasks import merge

from ...waiting import turns


class Source:
    """Yields numbers, and counts how many were taken; fails behind `last`."""

    def __init__(self, last: int, fails: bool = False) -> None:
        self.last, self.fails, self.taken, self.closed = last, fails, 0, False

    async def __call__(self) -> AsyncGenerator[int, None]:
        try:
            while self.taken < self.last:
                self.taken += 1
                yield self.taken
                await turns()
            if self.fails:
                raise UpstreamUnavailable("gone")
        finally:
            self.closed = True


async def test_everything_comes_in_the_order_of_its_stream() -> None:
    sources = [Source(100), Source(7), Source(0)]
    async with aclosing(merge([source() for source in sources])) as items:
        got = [item async for item in items]
    assert sorted(got) == sorted([*range(1, 101), *range(1, 8)])
    assert all(source.closed for source in sources)


async def test_who_reads_slowly_is_not_read_for() -> None:
    sources = [Source(10_000), Source(10_000)]
    async with aclosing(merge([source() for source in sources])) as items:
        for count in range(1, 20):
            await anext(items)
            await turns(50)  # whatever could be read meanwhile
            assert sum(source.taken for source in sources) <= count + 4
    assert all(source.closed for source in sources)


async def test_the_first_failure_ends_all() -> None:
    sources = [Source(3, fails=True), Source(10_000)]
    async with aclosing(merge([source() for source in sources])) as items:
        with pytest.raises(UpstreamUnavailable, match="gone"):
            async for _ in items:
                pass
    assert all(source.closed for source in sources)
