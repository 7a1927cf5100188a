"""Each OpenWhisk that we start has a net for its actions that no other one has."""

from __future__ import annotations

import contextlib
import os
import socket

import pytest

from tests.openwhisk.server import claimed


def test_no_two_have_the_same_net() -> None:
    with contextlib.ExitStack() as held:
        nets = [held.enter_context(claimed())[0] for _ in range(5)]  # few: others on this machine want some, too
    assert len(set(nets)) == 5


def test_a_net_is_held_as_long_as_anybody_has_the_socket() -> None:
    with claimed() as (_, claim), socket.socket(fileno=os.dup(claim)) as ours:
        name, inherited = ours.getsockname(), os.dup(claim)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other, pytest.raises(OSError, match="in use"):
        other.bind(name)
    os.close(inherited)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(name)
