"""LangChain, as people write it: the published snippet, run word for word in a process of its own."""

import subprocess
import sys

SNIPPET = """\
from langchain_openai import ChatOpenAI
chat_model = ChatOpenAI(model="autoglm-phone-9b", temperature=0.5, base_url="http://localhost:8000/v1", api_key="EMPTY",
    extra_body={"enable_thinking": True, "return_reasoning": True}, streaming=True)
print(chat_model.invoke("你是谁?").content)   # introduces itself as AutoGLM-Phone
"""


def test_the_snippet_introduces_autoglm_phone(base_url: str) -> None:
    code = SNIPPET.replace("http://localhost:8000/v1", base_url)
    assert code != SNIPPET
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "AutoGLM-Phone" in done.stdout
    assert "<think>" not in done.stdout
