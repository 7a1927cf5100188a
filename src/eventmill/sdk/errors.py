"""What an author can raise (`Retry`, `Fatal`), and what an author is told (`FlowError`).

The exceptions say what they mean in plain attributes, so that a worker recognises them without importing this package
(an archive brings its own copy of it along).
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType, FunctionType
    from typing import Optional, Union

_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep


class FlowError(ValueError):
    """A flow that can't work. The message says where (`flow.py:12`), what is wrong and what to do about it.

    `where` is the line of the flow that is being executed, unless it is given.
    """

    def __init__(self, message: str, where: Optional[str] = None) -> None:
        self.where = caller() if where is None else where
        super().__init__(f"{self.where}: {message}" if self.where else message)


class Retry(Exception):
    """Raise it to fail this attempt and to say when the next one may help: `Retry(after="5m")`.

    `after`: seconds, or a text such as "30s"; None leaves the delay to the server. It does not add attempts.
    """

    def __init__(self, message: str = "another attempt may help", *, after: Union[float, str, None] = None) -> None:
        from eventmill.sdk.units import seconds

        super().__init__(message)
        self.eventmill_retry_after: Optional[float] = None if after is None else seconds(after, "after")


class Fatal(Exception):
    """Raise it to fail the activation at once: no further attempt would help."""

    eventmill_fatal = True


def line_of(function: FunctionType) -> str:
    """`file:line` of a function's definition."""
    return f"{os.path.basename(function.__code__.co_filename)}:{function.__code__.co_firstlineno}"


def caller() -> str:
    """`file:line` of the innermost frame outside of this package; "" if there is none."""
    frame: Optional[FrameType] = sys._getframe(1)
    while frame is not None:
        if not os.path.abspath(frame.f_code.co_filename).startswith(_HERE):
            return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"
        frame = frame.f_back
    return ""
