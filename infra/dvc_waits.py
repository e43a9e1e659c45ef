"""Lets `dvc repro` by hand wait for a run that has the files of a stage, where DVC itself gives up at once.

DVC has `--wait-for-lock` for its lock on the project, and nothing for its locks on files. `make` copies this file into
the environment, whatever commit is checked out later, and has `install` called whenever its Python starts; until DVC
loads its command that is all that happens. So what is imported here is what every Python has loaded by then.
"""

import sys
import time
from _frozen_importlib import ModuleSpec
from _frozen_importlib_external import PathFinder

MODULE = "dvc.commands.repro"
PAUSE = 2.0  # seconds before another try


def install() -> None:
    """Has DVC's command wait in this process."""
    sys.meta_path.insert(0, _Finder())


class _Finder:
    """Finds DVC's command as Python does, and has it wait once it is loaded."""

    def find_spec(self, name, path=None, target=None) -> ModuleSpec | None:
        if name != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_wrap(module) -> None:
                load(module)
                module.CmdRepro.run = waiting(module.CmdRepro.run)

            spec.loader.exec_module = load_and_wrap
        return spec


def waiting(run):
    """Returns DVC's command, given anew until no other process is in its way; what is up to date by then is not run.

    Arguments:
        run: Method of DVC's command; returns its exit status.
    """

    def wrapper(command) -> int:
        told = False
        while True:
            try:
                return run(command)
            except Exception as error:
                if not _is_lock(error):
                    raise
            if not told:
                print("Another run has the files of a stage; waiting until it is done with them.", flush=True)
                told = True
            time.sleep(PAUSE)

    return wrapper


def _is_lock(error: BaseException | None) -> bool:
    """Whether an error of DVC's, or what it comes from, is that another process is in the way."""
    while error is not None:
        if type(error).__name__ == "LockError":
            return True
        error = error.__cause__
    return False
