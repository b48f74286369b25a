"""The service's errors, and how a client sees them."""

from starlette.responses import JSONResponse

from upfield.common.errors import RunError


class RefusedError(Exception):
    """A request that is answered with an error status and one sentence."""

    def __init__(self, status: int, sentence: str, retry_after_s: int | None = None) -> None:
        """Set the HTTP status, the sentence for the client, and when the client may try again."""
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence
        self.retry_after_s = retry_after_s


class ClientGoneError(Exception):
    """The client has closed the connection, so that nobody reads an answer."""


class EngineError(RunError):
    """Slices cannot be restored now because the service is in trouble, whatever the scan is like."""


def error_response(refusal: RefusedError, request_id: str) -> JSONResponse:
    """Return a refusal as a JSON answer with the keys `error` and `request`."""
    headers = {} if refusal.retry_after_s is None else {"Retry-After": str(refusal.retry_after_s)}
    if refusal.status == 408:
        # The rest of the scan may still arrive, and would be read as the next request.
        headers["Connection"] = "close"
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse({"error": refusal.sentence, "request": request_id}, refusal.status, headers)
