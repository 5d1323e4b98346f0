"""A picture of 40 megapixels: what it takes while it is decoded, and that it leaves nothing behind."""

import io
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from autoglm.vision import image as vision_image
from autoglm.vision.image import LARGE_PIXELS, ImageError, decoded_image

WIDE, HIGH = 8000, 5000
PIXELS = 4 * WIDE * HIGH // 2**20  # MiB of the decoded picture; Pillow has four bytes for each pixel of RGB

# Encodes the picture that its argument names in the servicer, twice, as the first time loads libraries. Prints by how
# many MiB the second time raised the peak of the process, and how many it left behind.
PROGRAM = """
import asyncio, sys
from pathlib import Path
from autoglm.vision.servicer import VisionServicer
from autoglm.vision.settings import VisionSettings
from autoglm.v1 import vision_pb2

class Nothing:
    def __getattr__(self, name):
        return lambda *_: None

def of(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(dict(line.split(":", 1) for line in lines)[field].split()[0]) / 1024

async def main():
    servicer = VisionServicer.load(VisionSettings())
    request = vision_pb2.VisionServiceEncodeRequest(image=Path(sys.argv[1]).read_bytes())
    request.timeout.seconds = 300
    await servicer.encode(request, Nothing(), Nothing())
    before = of("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what there is now
    await servicer.encode(request, Nothing(), Nothing())
    print(of("VmHWM") - before, of("VmRSS") - before)

asyncio.run(main())
"""


def picture(mode: str) -> Image.Image:
    row = np.linspace(0, 255, WIDE).astype(np.uint8)
    return Image.fromarray(np.stack([np.tile(row, (HIGH, 1))] * len(mode), -1))


def jpeg(image: Image.Image) -> bytes:
    return _saved(image, "JPEG")


def png(image: Image.Image) -> bytes:
    return _saved(image, "PNG", compress_level=1)


def _saved(image: Image.Image, kind: str, **options: int) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("mode", "save", "copies"),
    [
        ("RGB", jpeg, 0),
        ("RGB", png, 1),
        ("RGBA", lambda image: png(image)[:-2000], 2),
    ],
    ids=["JPEG", "PNG", "broken PNG with transparency"],
)
def test_a_large_picture_leaves_no_memory_behind(
    tmp_path: Path, mode: str, save: Callable[[Image.Image], bytes], copies: int
) -> None:
    (tmp_path / "picture").write_bytes(save(picture(mode)))
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "picture")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    peak, kept = map(float, done.stdout.split())
    assert peak < (copies + 0.6) * PIXELS
    assert kept < PIXELS / 3


SIDE = int(LARGE_PIXELS**0.5)
SMALL, LARGE = (png(Image.new("L", (SIDE, SIDE + more))) for more in (0, 1))


@pytest.mark.parametrize(("data", "times"), [(SMALL, 0), (LARGE, 1), (LARGE[:100], 1), (b"", 0), (b"GIF89a", 0)])
def test_the_header_alone_says_what_is_large(monkeypatch: pytest.MonkeyPatch, data: bytes, times: int) -> None:
    released, opened = Mock(), Mock(wraps=Image.open)
    monkeypatch.setattr(vision_image, "release_free_memory", released)
    monkeypatch.setattr(Image, "open", opened)
    with suppress(ImageError), decoded_image(data):
        released.assert_not_called()
    assert released.call_count == times
    assert opened.call_count == 1  # reading a header costs time, and may fail in many ways
