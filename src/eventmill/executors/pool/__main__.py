"""Starts the zygote: `python -I …/pool/__main__.py CONTROL SERVER` (descriptors).

Run by path, because with -I the package may not be importable yet. The packages above the zygote are entered without
running their `__init__`: these load the event loop and much else, which every fork would have to copy.
"""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path

if __name__ == "__main__":
    pool = Path(__file__).resolve().parent
    executors = pool.parent
    if str(executors.parent.parent) not in sys.path:
        sys.path.append(str(executors.parent.parent))
    for name, directory in (("eventmill.executors", executors), ("eventmill.executors.pool", pool)):
        package = types.ModuleType(name)
        package.__path__ = [str(directory)]
        sys.modules[name] = package
    importlib.import_module("eventmill.executors.pool.zygote").main(int(sys.argv[1]), int(sys.argv[2]))
