"""Kinds of functions: names and what they stand for; images."""

from __future__ import annotations

import pytest

from eventmill.api import documents
from eventmill.api.errors import Refusal
from eventmill.config import Functions, Limits
from eventmill.entities.kinds import PYTHON, PYTHON_ONLY, PYTHONS, Kinds
from eventmill.executors.kinds import kinds_of
from eventmill.executors.pool import node

KINDS = Kinds({"python": PYTHONS, "nodejs": ("nodejs:18", "nodejs:20")})


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("python:3.9", "python:3.9"), ("python:3", PYTHON), ("python", PYTHON), ("python:default", PYTHON),
        ("nodejs", "nodejs:20"), ("nodejs:default", "nodejs:20"), ("nodejs:18", "nodejs:18"),
        ("nodejs:22", None), ("nodejs:3", None), ("ruby", None), ("", None), (":", None),
        ("blackbox", "blackbox"), ("native", "native"),
    ],
)  # fmt: skip
def test_names(given: str, meant: str | None) -> None:
    assert KINDS.resolve(given) == meant
    assert (given in KINDS.names()) == (meant is not None)


def test_a_server_has_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "find", lambda: node.Node("/usr/bin/node", 21))
    assert kinds_of(Functions()).resolve("nodejs") == "nodejs:20"
    monkeypatch.setattr(node, "find", lambda: None)
    assert kinds_of(Functions()).resolve("nodejs") is None
    assert PYTHON_ONLY.resolve("native") is None


def test_the_only_image_is_that_of_executables() -> None:
    def change(**exec_: object) -> object:
        return documents.action_change({"exec": {"kind": "blackbox", **exec_}}, Limits(), "ns", KINDS)["exec"]

    image = "openwhisk/dockerskeleton:nightly"
    assert change(image=image) == {"kind": "blackbox", "image": image, "binary": False}
    assert change(image=image, code="abcd", main="x") == {
        "kind": "blackbox", "image": image, "code": "abcd", "binary": True, "main": "x",
    }  # fmt: skip
    for refused in ({"image": "alpine"}, {"image": "openwhisk/dockerskeletonx"}, {"image": 7}, {}):
        with pytest.raises(Refusal):
            change(**refused)
    with pytest.raises(Refusal, match="no containers"):
        change(image="alpine")
