"""This machine's clock against that of an S3 store, which refuses requests whose time is more than 15 minutes off."""

import time
from email.utils import parsedate_to_datetime
from urllib.error import HTTPError
from urllib.request import urlopen

AWS = "https://s3.amazonaws.com"
ALLOWED = 15 * 60  # seconds, S3's own
PATIENCE = 10  # seconds for an answer


def wrong_clock(endpoint: str | None) -> str | None:
    """Returns a sentence on a clock that is wrong; None if it is right or the store does not tell the time.

    Arguments:
        endpoint: The store's URL; None for Amazon's.
    """
    url = endpoint or AWS
    date = _date_of(url)
    if date is None:
        return None
    ahead = time.time() - date
    if abs(ahead) < ALLOWED:
        return None
    way = "ahead of" if ahead > 0 else "behind"
    return (
        f"this machine's clock is {abs(ahead) / 60:.0f} minutes {way} that of the S3 store at {url}, which refuses "
        "requests of another time than its own (RequestTimeTooSkewed); set the clock by NTP and run again"
    )


def _date_of(url: str) -> float | None:
    """Returns the time at a server, by the header that goes with any answer, a refusal too."""
    try:
        with urlopen(url, timeout=PATIENCE) as answer:
            date = answer.headers.get("Date")
    except HTTPError as error:
        date = error.headers.get("Date")
    except (OSError, ValueError):
        return None
    try:
        return parsedate_to_datetime(date).timestamp() if date else None
    except ValueError:
        return None
