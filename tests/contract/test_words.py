"""The field's words find the code that does it, and a class name has one meaning."""

import re
from pathlib import Path

import pytest
from structure import product_files, shared_class_names

ROOT = Path(__file__).resolve().parents[2]
WORDS = {
    "admission": "gateway/autoglm/gateway/admission/admission.py",
    "backpressure": "services/decoder/autoglm/decoder/engine/scheduler.py",
    "chunked prefill": "services/decoder/autoglm/decoder/engine/scheduler.py",
    "circuit breaker": "gateway/autoglm/gateway/circuit_breaker.py",
    "load shedding": "gateway/autoglm/gateway/admission/admission.py",
    "preemption": "services/decoder/autoglm/decoder/engine/scheduler.py",
    "prefix cache": "services/decoder/autoglm/decoder/engine/cache.py",
    "rate limit": "gateway/autoglm/gateway/admission/quota.py",
    "rope": "services/decoder/autoglm/decoder/engine/models/glm.py",
    "single flight": "gateway/autoglm/gateway/media/cache.py",
}


@pytest.mark.parametrize("word", sorted(WORDS))
def test_the_fields_word_is_in_the_code_that_does_it(word: str) -> None:
    assert re.search(rf"\b{word}\b", (ROOT / WORDS[word]).read_text(encoding="utf-8"), re.IGNORECASE)


def test_a_class_name_has_one_meaning() -> None:
    assert shared_class_names(ROOT, product_files(ROOT)) == {}
