"""What a LangChain program does: the published snippet, unchanged but for the address."""

import sys

from langchain_openai import ChatOpenAI

chat_model = ChatOpenAI(
    model="autoglm-phone-9b",
    temperature=0.5,
    base_url=sys.argv[1] if len(sys.argv) > 1 else "http://localhost:8000/v1",
    api_key="EMPTY",
    extra_body={"enable_thinking": True, "return_reasoning": True},
    streaming=True,
)
print(chat_model.invoke("你是谁?").content)
