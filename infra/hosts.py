"""An ASGI server's application behind a check of the Host header.

Without it a page on another site can reach a server of this machine by a name that it makes resolve to 127.0.0.1.
`uvicorn --factory infra.hosts:guarded` serves the application that NFM_GUARDED names, as "module:factory".
"""

import os
from importlib import import_module
from typing import Any

from starlette.middleware.trustedhost import TrustedHostMiddleware

from infra.settings import NAMES


def guarded() -> Any:
    """Returns the application that NFM_GUARDED names; foreign Host headers get status 400."""
    module, _, factory = os.environ["NFM_GUARDED"].partition(":")
    application = getattr(import_module(module), factory)()
    return TrustedHostMiddleware(application, allowed_hosts=list(NAMES), www_redirect=False)
