"""What DVC prints, read: what it has done with a stage, what a failure is called, and what another try can mend."""

import re
from collections.abc import Sequence
from typing import Literal

from prefect import State
from prefect.states import Failed

from flows.process import ending, last_words

Outcome = Literal["Cached", "Pulled", "Restored", "Completed", "Elsewhere"]

BUSY = ("Unable to acquire lock", "is busy, it is being blocked by")
# Advice of DVC's for its command line.
HINTS = (
    "To track the changes with git",
    "git add ",
    "To enable auto staging",
    "dvc config core.autostage",
    "Use `dvc push`",
)
FULL = re.compile(r"No space left on device|Disk quota exceeded")
# What DVC says of a folder in its run-cache whose only entry was cut off by a full disk or a kill, and is removed.
EMPTY = "join() argument must be str, bytes, or os.PathLike object, not 'NoneType'"
CUT = re.compile(r"Unable to read RWLock-file .* corrupted|RWLock-file .* format error")
LISTED = "Missing cache files:"
NOT_SENT = re.compile(r"failed to transfer '([^']+)' - (.*)")
NOT_THERE = re.compile(r"key does not exist|NoSuchKey|No such file|\(404\)")
REFUSED_BY_STORE = re.compile(r"Forbidden|Access ?Denied|RequestTimeTooSkewed|request time and the current time")
UNREACHABLE = re.compile(
    r"could not connect|cannot connect|failed to connect|connection (was|refused|reset|aborted|error|closed)|"
    r"timed? ?out|name resolution|name or service not known|unreachable|server disconnected|broken pipe|"
    r"incomplete ?read|payload is not completed|SlowDown|Service ?Unavailable|Internal ?(Server ?)?Error|"
    r"Bad Gateway|\((500|502|503|504)\) when calling",
    re.IGNORECASE,
)


def outcome(name: str, lines: Sequence[str]) -> Outcome:
    """Returns what DVC has done with a stage."""
    if f"Running stage '{name}':" in lines:
        return "Completed"
    if any(line.startswith(f"Stage '{name}' is cached - skipping run") for line in lines):
        return "Restored"
    if any(line.startswith("Pulling data for") for line in lines):
        return "Pulled"
    return "Cached"


def failure(name: str, status: int, lines: Sequence[str]) -> State[None]:
    """Turns DVC's last words on a stage, or the stage's own, into a state.

    Arguments:
        name: The stage's address.
        status: DVC's exit status, or minus a signal's number.
        lines: What DVC and the stage have printed.
    """
    reason = errors(lines) or f"dvc repro ended with {ending(status)}"
    if is_busy(reason):
        return Failed(name="Busy", message=f"{name}: {holder(lines)}")
    if CUT.search(reason):
        return Failed(message=f"{name}: DVC's list of locks was cut off, as by a full disk; free some and run again")
    if f"Running stage '{name}':" not in lines:
        return Failed(name=unreachable(lines), message=f"{name}: {short(reason)}")
    code = re.search(r"exited with (-?\d+)", reason)
    if code or status < 0:
        return Failed(message=f"{name}: {last_words(lines, int(code[1]) if code else status)}")
    # The stage has ended well, and DVC has not.
    return Failed(
        message=f"{name} has ended well, but DVC could not keep its outputs: {short(reason)}; mend that and run again, "
        f"or `dvc commit --force {name}` first, which keeps what the stage has made if nothing has changed since"
    )


def errors(lines: Sequence[str]) -> str:
    """Returns what DVC has printed as errors, each once."""
    found = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return "; ".join(dict.fromkeys(found))


def short(reason: str) -> str:
    """Returns one sentence for many alike, as DVC prints one a file."""
    if FULL.search(reason):
        files = re.findall(r"-> '([^']+)'", reason)
        return f"no space is left on the device{f' while writing {files[0]}' if files else ''}"
    parts = reason.split("; ")
    if len(lost := [part for part in parts if NOT_SENT.match(part)]) > 1:
        return f"{lost[0]} ({len(lost) - 1} more files were not transferred)"
    return reason


def unreachable(lines: Sequence[str]) -> str | None:
    """Returns the name of a failure of the remote's that another try may mend; None for another failure."""
    return "Unreachable" if UNREACHABLE.search("\n".join(lines)) else None


def lacking(lines: Sequence[str]) -> list[str]:
    """Returns the MD5s of the files that DVC has found neither in the cache nor in the remote."""
    listed = re.findall(r"md5: ([0-9a-f]{32}(?:\.dir)?)", "\n".join(lines).partition(LISTED)[2])
    return list(dict.fromkeys([*listed, *(what for what, why in _not_sent(lines) if NOT_THERE.search(why))]))


def withheld(lines: Sequence[str]) -> bool:
    """Whether a transfer has failed for another reason than that there is no such file."""
    return any(not NOT_THERE.search(why) for _, why in _not_sent(lines))


def _not_sent(lines: Sequence[str]) -> list[tuple[str, str]]:
    return [(found[1], found[2]) for line in lines if (found := NOT_SENT.search(line))]


def is_busy(text: str) -> bool:
    """Whether another process of DVC's was in the way."""
    return any(words in text for words in BUSY)


def holder(lines: Sequence[str]) -> str:
    """Returns what DVC says of another process that is in the way, in a sentence."""
    found = re.search(r"\(PID (\d+)\)", " ".join(lines))
    who = f"process {found[1]}" if found else "another process"
    return f"waiting for {who}, which uses its files"
