"""A screenshot and a spoken instruction in, one phone action out; asked twice, to see the cache at work."""

import base64
import sys
import time
from pathlib import Path

from openai import OpenAI

HERE = Path(__file__).parent
client = OpenAI(base_url=sys.argv[1] if len(sys.argv) > 1 else "http://localhost:8000/v1", api_key="EMPTY")


def base64_of(name: str) -> str:
    """Return a file from the folder of this script as base64."""
    return base64.b64encode((HERE / name).read_bytes()).decode()


for attempt in ("first", "again"):
    started = time.perf_counter()
    answer = client.chat.completions.create(
        model="autoglm-phone-9b",
        temperature=0,
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64_of('home.png')}"}},
                    {"type": "input_audio", "input_audio": {"data": base64_of("instruction.wav"), "format": "wav"}},
                ],
            }
        ],
    )
    milliseconds = (time.perf_counter() - started) * 1000
    print(f"{attempt}: {answer.choices[0].message.content}")
    media = answer.model_extra["autoglm"]["stages"]["media"]
    print(f"       {milliseconds:.0f} ms, cache: {', '.join(item['modality'] + ' ' + item['cache'] for item in media)}")
