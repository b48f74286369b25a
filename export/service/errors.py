"""The service's errors, and the JSON response that a client receives."""

from starlette.responses import JSONResponse

from upfield.common.errors import RunError


class RefusedError(Exception):
    """Refusal of a request, with an HTTP error status and a message."""

    def __init__(self, status: int, message: str, retry_after_s: int | None = None) -> None:
        """Set the HTTP status, the message for the client, and the time after which the client may try again."""
        super().__init__(message)
        self.status = status
        self.message = message
        self.retry_after_s = retry_after_s


class ClientGoneError(Exception):
    """The client has closed the connection, so nobody would read a response."""


class EngineError(RunError):
    """The replicas cannot restore slices, for reasons other than the scan."""


def error_response(refusal: RefusedError, request_id: str) -> JSONResponse:
    """Return a refusal as a JSON response with the keys `error` and `request`."""
    headers = {} if refusal.retry_after_s is None else {"Retry-After": str(refusal.retry_after_s)}
    if refusal.status == 408:
        # The rest of the upload may still arrive, and the server would read it as the next request.
        headers["Connection"] = "close"
    if refusal.status == 415:
        headers["Accept-Encoding"] = "gzip, deflate"
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse({"error": refusal.message, "request": request_id}, refusal.status, headers)
