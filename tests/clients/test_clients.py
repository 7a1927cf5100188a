"""OpenWhisk's official clients for JavaScript, unmodified, against a real server."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.cli.server import started

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
INSTALLED = HERE.parents[1] / ".cache/clients"
SCENARIOS = (
    "actions", "nodejs", "failures", "packages", "triggers", "feeds", "sequences", "activations", "namespaces",
)  # fmt: skip


@pytest.fixture(scope="module")
def modules() -> Path:
    """Where the clients of package-lock.json are installed: once, and again when that has changed."""
    lock = HERE / "package-lock.json"
    stamp = INSTALLED / "stamp"
    if not stamp.exists() or stamp.read_bytes() != lock.read_bytes():
        INSTALLED.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / name, INSTALLED)
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        done = subprocess.run(command, cwd=INSTALLED, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        shutil.copy(lock, stamp)
    return INSTALLED / "node_modules"


@pytest.fixture(scope="module")
def environment(modules: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, str]]:
    """What the clients find a server by."""
    folder = tmp_path_factory.mktemp("server")
    config = folder / "eventmill.toml"
    config.write_text(f"functions.node_modules = '{modules}'\n")
    with started(folder, "serve", "--config", str(config)):
        url, key = ((folder / "data" / name).read_text().strip() for name in ("address", "key"))
        home = str(folder)  # no properties of somebody's own
        yield {"PATH": os.environ["PATH"], "HOME": home, "NODE_PATH": str(modules), "__OW_API_HOST": url,
               "__OW_API_KEY": key}  # fmt: skip


def node(environment: Mapping[str, str], *command: str) -> str:
    done = subprocess.run(["node", *command], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_client_for_javascript(environment: Mapping[str, str], scenario: str) -> None:
    node(environment, str(HERE / "client.js"), scenario)


def test_the_composer(environment: Mapping[str, str], modules: Path, tmp_path: Path) -> None:
    compiled = tmp_path / "collatz.json"
    compiled.write_text(node(environment, str(modules / ".bin/compose"), str(HERE / "composition.js")))
    said = node(environment, str(modules / ".bin/deploy"), "collatz", str(compiled), "-w")
    assert "ok: created action" in said
    assert [invoke(environment, {"n": n}) for n in (4, 5)] == [{"outcome": "even"}, {"outcome": "odd"}]


def invoke(environment: Mapping[str, str], parameters: Any) -> Any:
    uuid, secret = environment["__OW_API_KEY"].split(":")
    url = environment["__OW_API_HOST"] + "/api/v1/namespaces/_/actions/collatz"
    query = {"blocking": "true", "result": "true"}
    answer = httpx.post(url, json=parameters, params=query, auth=(uuid, secret), timeout=60, trust_env=False)
    assert answer.status_code == 200, json.dumps(answer.json())
    return answer.json()
