"""What torch.compile needs of a machine."""

import os
import shutil

from nfm.errors import InputError

COMPILERS = ("c++", "g++", "clang++", "cc", "gcc", "clang")


def require_compiler(key: str) -> None:
    """Raises InputError where no compiler is found with which torch.compile could build what it generates.

    Arguments:
        key: Name in the params of the wish to compile, for the message.
    """
    named = [os.environ[name] for name in ("CXX", "CC") if os.environ.get(name)]
    if not any(shutil.which(name) for name in (*named, *COMPILERS)):
        raise InputError(
            f"{key} is true, but there is no C++ compiler ({', '.join(COMPILERS)}); install one, name it in CXX, "
            f"or set {key} to false"
        )
