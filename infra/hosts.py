"""An ASGI server's application behind a check of the Host header.

Without it a page on another site can reach a server of this machine by a name that it makes resolve to 127.0.0.1.
`uvicorn --factory infra.hosts:guarded` serves the application that NFM_GUARDED names, as "module:factory", to the hosts
that NFM_HOSTS lists, with commas between. This file is also in the image of the containers, alone.
"""

import os
from importlib import import_module
from typing import Any

from starlette.middleware.trustedhost import TrustedHostMiddleware


def guarded() -> Any:
    """Returns the application that NFM_GUARDED names; Host headers that NFM_HOSTS lacks get status 400."""
    module, _, factory = os.environ["NFM_GUARDED"].partition(":")
    application = getattr(import_module(module), factory)()
    return TrustedHostMiddleware(application, allowed_hosts=os.environ["NFM_HOSTS"].split(","), www_redirect=False)
