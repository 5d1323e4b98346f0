"""How large the formats and tools of one request may be, for gateway and decoder alike; docs/errors.md and
docs/openai-api.md say the same, and a test compares.

The gateway refuses what exceeds a limit before anything is built of it. The decoder checks too, because it is a service
of its own; the depth of schemas and the size of all tools together are for it alone to check.
"""

from collections.abc import Mapping

# OpenAI takes 120 000 characters of names and values in a strict schema, and 1 000 values of an enum.
MAX_SCHEMA_BYTES = 256 * 1024  # of UTF-8; the parameters of all tools together, too
MAX_GRAMMAR_BYTES = 128 * 1024
MAX_REGEX_BYTES = 32 * 1024  # the work for each token grows with it
MAX_CHOICE_BYTES = 256 * 1024  # of all texts that an answer may be chosen from
MAX_CHOICE_TEXTS = 4096
MAX_SCHEMA_DEPTH = 100  # of arrays and objects; OpenAI takes 10 levels of objects, which are about 30

# By the field of SamplingParams.structured_output.
MAX_FORMAT_BYTES: Mapping[str, int] = {
    "choice": MAX_CHOICE_BYTES,
    "grammar": MAX_GRAMMAR_BYTES,
    "json_schema": MAX_SCHEMA_BYTES,
    "regex": MAX_REGEX_BYTES,
}
