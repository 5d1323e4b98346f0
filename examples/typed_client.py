"""The typed client: a screenshot is sent once and asked about twice, the second time streamed."""

import sys
from pathlib import Path

from autoglm.client import Client

SCREEN = Path(__file__).with_name("home.png")

with Client(sys.argv[1] if len(sys.argv) > 1 else "localhost:50051") as client:
    answer = client.chat("打开游戏", images=[SCREEN], temperature=0)
    print(answer.text)
    gates = {name: round(gate, 2) for name, gate in answer.gates.items()}
    print(f"image {answer.stages.media[0].cache}, gates {gates}")
    with client.stream("屏幕上有游戏吗?", images=[SCREEN], temperature=0) as stream:
        for piece in stream:
            print(piece.text, end="", flush=True)
    usage = stream.answer.usage
    print(f"\nimage {stream.answer.stages.media[0].cache}, {usage.prompt_tokens} + {usage.completion_tokens} tokens")
