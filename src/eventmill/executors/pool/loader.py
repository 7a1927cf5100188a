"""Loading an action's code as OpenWhisk's Python runtime does. Runs in the worker; standard library only.

Source text, or a directory (an unpacked zip) with a `__main__.py` and whatever it imports beside it, optionally with a
`virtualenv/`. The code is a module called `main__`, as there: a block under `if __name__ == "__main__"` does not run.
"""

from __future__ import annotations

import linecache
import os
import runpy
import sys
import traceback
import types
from collections.abc import Callable
from typing import Any

NO_CODE = "The action failed to generate or locate a binary. See logs for details."
NO_START = "Cannot start action. Check logs for details."
NO_MEMORY = "The action exhausted its memory and was aborted."
NO_DIRECTORY_MAIN = "Zip file does not include __main__"
NO_ACTIVATE = "Invalid virtualenv. Zip file does not include 'activate_this.py'."
REQUIREMENTS = "requirements.txt"
NOT_INSTALLED = "Nothing is installed from requirements.txt: put the modules, or a virtualenv, into the archive."

WHY_CHARACTERS_MAX = 500

MODULE = "main__"

Function = Callable[[Any], Any]


_SDK_FILE = os.path.join("eventmill", "sdk", "runtime.py")
"""What calls an author's function, in every archive that the SDK has packed."""


class LoadError(Exception):
    """The code can't be loaded: the message is the activation's error, a traceback is on stderr.

    `final`: it would not help to try again.
    """

    def __init__(self, message: str, final: bool) -> None:
        super().__init__(message)
        self.final = final


def load(name: str, source: bytes, directory: str | None, main: str) -> Function:
    """The function `main` of the code: `source`, or `directory`/__main__.py. `name` is the action's, for tracebacks."""
    file = name
    if directory is not None:
        file = os.path.join(directory, "__main__.py")
        source = _read(file)
        sys.path.insert(0, directory)
    code = _compile(source, file)
    module = types.ModuleType(MODULE)
    module.__file__ = file
    sys.modules[MODULE] = module
    try:
        if directory is not None:
            _activate(directory)
        exec(code, module.__dict__)
        function = getattr(module, main)
    except LoadError:
        raise
    except MemoryError as e:
        raise LoadError(NO_MEMORY, final=False) from e
    except BaseException as e:  # SystemExit too: code that ends the process can't be started
        print_traceback(e, skip=1)
        if isinstance(e, ImportError) and os.path.exists(os.path.join(directory or "", REQUIREMENTS)):
            print(NOT_INSTALLED, file=sys.stderr)  # noqa: T201
        raise LoadError(_because(NO_START, _named(e)), final=isinstance(e, AttributeError | SyntaxError)) from e
    if not callable(function):
        raise _refused(f"'{main}' is not a function", NO_START)
    return function  # type: ignore[no-any-return]  # getattr of a module that nobody knows


def print_traceback(error: BaseException, skip: int) -> None:
    """Print it on stderr without the `skip` outermost frames, which are ours, and the SDK's below them."""
    trace = error.__traceback__
    for _ in range(skip):
        trace = trace.tb_next if trace else None
    while trace and trace.tb_frame.f_code.co_filename.endswith(_SDK_FILE):
        trace = trace.tb_next
    try:
        traceback.print_exception(type(error), error, trace)
    except Exception:  # an exception that can't even be printed
        print(type(error).__name__, file=sys.stderr)  # noqa: T201


def _read(file: str) -> bytes:
    try:
        with open(file, "rb") as opened:
            return opened.read()
    except OSError as e:
        raise _refused(NO_DIRECTORY_MAIN, NO_CODE) from e


def _compile(source: bytes, file: str) -> types.CodeType:
    text = source.decode(errors="replace")
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)  # lines for tracebacks
    try:
        return compile(source, file, "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as e:
        print_traceback(e, skip=1)
        raise LoadError(_because(NO_CODE, _named(e)), final=True) from e


def _activate(directory: str) -> None:
    environment = os.path.join(directory, "virtualenv")
    if os.path.isdir(environment):
        script = os.path.join(environment, "bin", "activate_this.py")
        if not os.path.exists(script):
            raise _refused(NO_ACTIVATE, NO_CODE)
        runpy.run_path(script)


def _refused(why: str, message: str) -> LoadError:
    print(why, file=sys.stderr)  # noqa: T201
    return LoadError(_because(message, why), final=True)


def _because(message: str, why: str) -> str:
    """OpenWhisk's words, which say no more than that it went wrong, and what did."""
    why = " ".join(why.rstrip(".").split())
    return f"{message} ({why if len(why) <= WHY_CHARACTERS_MAX else why[:WHY_CHARACTERS_MAX] + '…'})"


def _named(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # an exception that has no text
        return type(error).__name__
