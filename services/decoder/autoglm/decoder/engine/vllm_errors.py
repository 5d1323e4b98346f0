"""What a client sees of a request that vLLM does not take, or does not finish."""

from autoglm.common.errors import InternalError, InvalidRequest, MeshError
from autoglm.decoder.engine.request import Request, SamplingConfig


def refused(error: ValueError, request: Request) -> InvalidRequest:
    """Return the error for what vLLM's validation says; newer versions of vLLM name the parameter."""
    name, form = getattr(error, "parameter", None), request.grammar
    param = form.param if form else None
    if name in SamplingConfig.__slots__:
        param = f"sampling.{name}"
    return InvalidRequest(f"vLLM does not take this request: {error}", param=param)


def given_up(reason: str, request: Request) -> MeshError:
    """Return the error for an answer that vLLM ends: if it has a format, because no token can follow in that."""
    if request.grammar is None:
        return InternalError(f"vLLM gave up the request: {reason}")
    why = "the answer cannot be completed in this format: nothing can follow what has been generated so far"
    return InvalidRequest(why, param=request.grammar.param)
