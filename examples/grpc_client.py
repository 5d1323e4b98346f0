"""The same mesh over gRPC: a question about a screenshot, streamed token by token."""

import sys
from pathlib import Path

import grpc

from autoglm.v1 import chat_pb2, chat_pb2_grpc, generation_pb2

HERE = Path(__file__).parent
channel = grpc.insecure_channel(sys.argv[1] if len(sys.argv) > 1 else "localhost:50051")
question = chat_pb2.ChatMessage(
    role=generation_pb2.ROLE_USER,
    parts=[
        chat_pb2.ContentPart(image=chat_pb2.Media(data=(HERE / "home.png").read_bytes())),
        chat_pb2.ContentPart(text="屏幕上有游戏吗?"),
    ],
)
request = chat_pb2.StreamCompleteRequest(
    chat=chat_pb2.ChatRequest(messages=[question], sampling=generation_pb2.SamplingParams(temperature=0))
)
for response in chat_pb2_grpc.ChatServiceStub(channel).StreamComplete(request, timeout=30):
    print(response.delta.text, end="", flush=True)
gates = {gate.modality: round(gate.mean, 2) for gate in response.summary.gates}
print(f"\nprompt {response.summary.usage.prompt_tokens} tokens, gates {gates}")
