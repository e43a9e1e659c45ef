"""The command line inside the tests' own process."""

import sys

import pytest

from nfm.cli import main


def nfm(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Runs the command line; returns its exit status."""
    monkeypatch.setattr(sys, "argv", ["nfm", *arguments])
    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0
