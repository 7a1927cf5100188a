"""The public face: few names, all there, light, and Python 3.9."""

from __future__ import annotations

import ast
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import eventmill

SDK = Path(eventmill.__file__).parent / "sdk"
SOURCES = [SDK.parent / "__init__.py", *sorted(SDK.glob("*.py"))]


def fresh(code: str) -> str:
    """Output of the code in an interpreter of its own."""
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_all_is_complete_sorted_and_short() -> None:
    assert eventmill.__all__ == sorted(eventmill.__all__)
    assert len(eventmill.__all__) <= 15
    promised = {name for names in eventmill._HOMES.values() for name in names}
    assert promised == set(eventmill.__all__)
    assert set(eventmill.__all__) <= set(dir(eventmill))


def test_what_type_checkers_see_is_what_there_is() -> None:
    tree = ast.parse(SOURCES[0].read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        (node.module, alias.name) for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert seen == {(f"eventmill.sdk.{home}", name) for home, names in eventmill._HOMES.items() for name in names}


def test_every_name_loads_on_its_own() -> None:
    for name in eventmill.__all__:
        assert getattr(eventmill, name).__module__.startswith("eventmill.sdk.")
    assert fresh("import eventmill\nfor n in eventmill.__all__: getattr(eventmill, n)\nprint('ok')") == "ok\n"


def test_no_name_is_hidden_by_a_room_of_the_server() -> None:
    rooms = {module.name for module in pkgutil.iter_modules(eventmill.__path__)}
    assert not rooms & set(eventmill.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Mil'"):
        _ = eventmill.Mil


def test_import_loads_nothing_heavy_and_nothing_of_the_server() -> None:
    loaded = set(fresh("import sys, eventmill.sdk.runtime\nfrom eventmill import *\nprint(*sys.modules)").split())
    bare = set(fresh("import sys, json\nprint(*sys.modules)").split())
    heavy = {"typing", "dataclasses", "inspect", "pathlib", "hashlib", "orjson", "pydantic", "asyncio"}
    assert not (loaded - bare) & heavy
    assert {name for name in loaded if name.startswith("eventmill.")} <= {
        "eventmill.sdk",
        *(f"eventmill.sdk.{path.stem}" for path in SOURCES),
    }


def test_it_is_typed() -> None:
    assert (SDK.parent / "py.typed").exists()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_it_is_python_3_9(path: Path) -> None:
    tree = ast.parse(path.read_text(), feature_version=(3, 9))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert "__future__" in imported or len(tree.body) == 1, "annotations must not be evaluated on Python 3.9"
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            top = name.partition(".")[0]
            assert top in sys.stdlib_module_names or name == "eventmill" or name.startswith("eventmill.sdk.")
