"""What can go wrong when the service is asked, as its client tells it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cassata.errors import CassataError


class ClientError(CassataError):
    """The service did not do what was asked. `problem` is its problem document (RFC 9457), empty if there was none."""

    def __init__(self, message: str, *, status_code: int | None = None, problem: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.status_code = status_code
        self.problem = dict(problem or {})

    @property
    def errors(self) -> list[dict[str, str]]:
        """Each thing that is wrong: "detail", and a "pointer" into the request or the name of a "parameter"."""
        return list(self.problem.get("errors", ()))


class ServiceUnavailable(ClientError):
    """The service could not be reached or was not ready, also after repeating the request."""

    def __init__(self, message: str, *, retry_after: float | None = None, **details: Any) -> None:
        super().__init__(message, **details)
        self.retry_after = retry_after


class LimitReached(ServiceUnavailable):
    """The application has reached one of its limits (429), also after repeating the request."""


class Unauthorized(ClientError):
    """The service wants a key, and this one is not valid, or there is none (401)."""


class Forbidden(ClientError):
    """The key may not do that (403)."""


class InvalidRequest(ClientError):
    """The service refused what was asked (400, 413, 415)."""


class NotFound(ClientError):
    """There is no such event or series, or no such application (404)."""


class Conflict(ClientError):
    """What is there does not allow it (409): the id is taken by other content, the event or series has ended or the event is being
    sent, or the application is deactivated.
    """


class Outdated(ClientError):
    """The event, series or instance is not the version that was to be changed (412): look at it again."""


_KINDS: dict[int, type[ClientError]] = {
    400: InvalidRequest,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    412: Outdated,
    413: InvalidRequest,
    415: InvalidRequest,
    429: LimitReached,
}


def refusal(status_code: int, problem: Mapping[str, Any], otherwise: str) -> ClientError:
    """Return what an answer other than a good one means. `otherwise` is said where the service says nothing."""
    return _KINDS.get(status_code, ClientError)(problem.get("detail") or otherwise, status_code=status_code, problem=problem)
