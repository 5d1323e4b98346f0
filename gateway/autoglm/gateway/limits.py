"""How much of each thing a request may hold; docs/errors.md says the same, and a test compares. Formats and tools have
their sizes from autoglm.common.format_sizes, because the decoder checks them too.

What exceeds a limit is refused before anything is built of it, because most of a request is read in the process that
serves all others. The conversation of an agent comes near none of them. What a prompt may hold follows from the model's
context: `Assistant` checks it.
"""

from autoglm.common.errors import InvalidRequest

MAX_VALUES = 65536  # JSON values in a body, or fields in a gRPC message
MAX_MESSAGES = 2048  # as OpenAI's; items of a Responses input too
MAX_PARTS = 4096  # parts and earlier tool calls of all messages together
MAX_TOOLS = 128  # as OpenAI's
MAX_ID_LENGTH = 4096  # characters of the id of a call
MAX_CHOICES = 8  # answers to one request
MAX_STOPS, MAX_STOP_LENGTH = 4, 1024  # characters, which are compared with the answer at each token
MAX_LOGIT_BIASES = 4096
MAX_METADATA, MAX_METADATA_KEY, MAX_METADATA_VALUE = 16, 64, 512  # as OpenAI's
MAX_LABEL_LENGTH = 512  # characters of `user` and other names without effect
MAX_EMBEDDING_INPUTS = 2048  # as OpenAI's
MAX_FORM_FIELDS, MAX_FORM_FIELD_BYTES = 64, 1024 * 1024


def check_count(given: int, most: int, what: str, param: str) -> None:
    """Raise InvalidRequest if the list at `param` has more than `most` of `what`."""
    if given > most:
        raise InvalidRequest(f"{param} contains more than {most} {what}", param=param, code="array_above_max_length")


def check_length(text: str, most: int, param: str) -> None:
    """Raise InvalidRequest if the text at `param` has more than `most` characters."""
    if len(text) > most:
        raise InvalidRequest(f"{param} is longer than {most} characters", param=param, code="string_above_max_length")


def check_bytes(text: str, most: int, param: str) -> None:
    """Raise InvalidRequest if the text at `param` has more than `most` bytes in UTF-8."""
    if len(text.encode()) > most:
        raise InvalidRequest(f"{param} is longer than {most} bytes", param=param, code="string_above_max_length")
