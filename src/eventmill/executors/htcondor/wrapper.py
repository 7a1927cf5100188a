#!/bin/sh
""":"
# The wrapper of a job whose events the server can't read: `wrapper COMMAND ARGUMENTS…` runs the command in its place,
# reports the end to the server, and ends as the command did, so that HTCondor's own record is the same.
#
# The shell reads this part. Where there is no Python, the job runs all the same, and its end is found by the audit.
# Neither the job's environment nor its files change what Python does (-I, -S).
[ -x "$1" ] || /bin/chmod u+x "$1"
python=$(command -v python3 || echo /usr/bin/python3)
[ -x "$python" ] && exec "$python" -I -S "$0" "$@"
/bin/rm -f .eventmill-end.json
exec "$@"
":"""

# Standard library and old syntax only: execute nodes have what they have. The token comes in a file, which is gone
# before the command starts, so that neither the command nor what is transferred back has it. It is in no argument, no
# variable and no message. Signals are passed on. Single-threaded; all waits are `sigwait` and `sigtimedwait`.

import json
import os
import resource
import signal
import sys
import time
from contextlib import suppress

ORDER_FILE = ".eventmill-end.json"
"""`url` and `token`: where to say that the job has ended, and the proof that it may be said."""
PATIENCE_S = 30.0
"""So long it is tried; then the end is for the audit to find."""
ANSWER_S = 10.0
WAITS_S = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Between tries; the last one from then on."""

_ENDS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT}
_PASSED_ON = _ENDS | {signal.SIGUSR1, signal.SIGUSR2}


def main(command: "list[str]") -> int:
    """Run the command, report its end; its exit code. Does not return if the command was ended by a signal."""
    order = take_order()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON | {signal.SIGCHLD})
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        become(command)
    with suppress(ImportError):  # it takes longer than all else here: while the command runs
        import http.client  # noqa: F401
    status, told = wait(child)
    if order is not None:
        # one that was told to end is not given the time
        problem = report(order["url"], order["token"], 0.0 if told else PATIENCE_S)
        if problem:
            say("the end of this job could not be reported, and will be seen later: " + problem)
    return end_like(status, mask)


def take_order() -> "dict[str, str] | None":
    """What is in the file, which goes; None if there is none."""
    try:
        with open(ORDER_FILE, encoding="utf-8") as file:
            text = file.read()
        os.unlink(ORDER_FILE)
        order = json.loads(text)
        return {"url": order["url"], "token": order["token"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def become(command: "list[str]") -> None:
    try:
        os.execvp(command[0], command)
    except OSError as e:
        say(f"can't run {command[0]}: {e.strerror}")
    os._exit(126)


def wait(child: int) -> "tuple[int, bool]":
    """Pass signals on until the child has ended; its status, and whether somebody has told it to end."""
    told = False
    while True:
        number = signal.sigwait(_PASSED_ON | {signal.SIGCHLD})
        if number == signal.SIGCHLD:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return status, told
        else:
            told = told or number in _ENDS
            os.kill(child, number)


def report(url: str, token: str, patience_s: float) -> "str | None":
    """Tell the server; why not, if it could not be told. Whatever it answers but success may be better later."""
    until, tries = time.monotonic() + patience_s, 0
    while True:
        try:
            answer = post(url, token)
            if 200 <= answer < 300:
                return None
            problem = f"the server answers {answer}"
        except Exception as e:
            problem = f"{type(e).__name__}: {e}"
        wait_s = WAITS_S[min(tries, len(WAITS_S) - 1)]
        tries += 1
        if time.monotonic() + wait_s > until or signal.sigtimedwait(_ENDS, wait_s) is not None:
            return problem


def post(url: str, token: str) -> int:
    """The answer's status. Redirects are not followed, so that nobody else is given the token; certificates are
    checked against those that this machine trusts."""
    from http.client import HTTPConnection, HTTPSConnection
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=ANSWER_S)
    try:
        connection.request("POST", parts.path, headers={"Authorization": "Bearer " + token})
        return connection.getresponse().status
    finally:
        connection.close()


def end_like(status: int, mask: "set[signal.Signals | int]") -> int:
    """The child's exit code, or its signal."""
    if not os.WIFSIGNALED(status):
        return os.WEXITSTATUS(status)
    number = os.WTERMSIG(status)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the child's core is the one to look at
    with suppress(OSError):  # SIGKILL has no other action
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    os.kill(os.getpid(), number)
    return 128 + number


def say(text: str) -> None:
    os.write(2, f"eventmill: {text}\n".encode())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
