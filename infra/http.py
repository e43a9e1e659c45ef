"""Short questions to servers."""

import json
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

SECONDS = 10.0


class _Stay(HTTPRedirectHandler):
    """Follows no redirect: credentials go to the server that was asked, and to no other."""

    def redirect_request(self, *_: Any) -> None:
        return None


OPENER = build_opener(ProxyHandler({}), _Stay())  # this machine's own servers are behind no proxy


@dataclass(frozen=True)
class Answer:
    """What a server said.

    Attributes:
        status: HTTP's; 0 when there was no answer.
        headers: By name in small letters.
        text: The body, or why there was no answer.
    """

    status: int
    headers: Mapping[str, str]
    text: str

    def json(self) -> Any:
        """Returns the body's content; None if it is no JSON."""
        try:
            return json.loads(self.text)
        except ValueError:
            return None


def ask(url: str, access: str | None = None, content: Any = None, headers: Mapping[str, str] | None = None) -> Answer:
    """Sends a request, which never raises.

    Arguments:
        url: Where to.
        access: "user:password" for basic authentication.
        content: Sent as JSON, by POST; None for GET.
        headers: Further ones.
    """
    sent = {"Content-Type": "application/json", **(headers or {})}
    if access is not None:
        sent["Authorization"] = f"Basic {b64encode(access.encode()).decode()}"
    data = None if content is None else json.dumps(content).encode()
    try:
        with OPENER.open(Request(url, data, sent), timeout=SECONDS) as answer:
            return _answer(answer.status, answer.headers, answer.read())
    except HTTPError as error:
        with error:
            return _answer(error.code, error.headers, error.read())
    except (URLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return Answer(0, {}, str(getattr(reason, "strerror", None) or reason))


def _answer(status: int, headers: Any, body: bytes) -> Answer:
    return Answer(status, {name.lower(): value for name, value in headers.items()}, body.decode(errors="replace"))
