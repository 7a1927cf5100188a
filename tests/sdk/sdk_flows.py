"""Flows for the SDK's tests."""

from __future__ import annotations

import base64
import io
import textwrap
import zipfile
from pathlib import Path
from typing import Any

from eventmill.sdk.pack import Flow, load

Documents = dict[tuple[str, str], dict[str, Any]]
"""By (collection, name)."""

TEN_LINES = """\
from eventmill import Mill, files

mill = Mill("beamtime")

@mill.function(timeout="30s", memory="256MB")
def inspect(event):
    \"\"\"Reads the header of the new file.\"\"\"
    return {"path": event.subject, "frames": 7}

calibrate = mill.job("calibrate.sub")

@mill.job(cpus=8, memory="16GB")
def reconstruct(calibrated): ...

@mill.function
def register(result): ...

mill.on(files.written("/exfel/**/raw/*.h5"), inspect >> calibrate >> reconstruct >> register)
"""

CALIBRATE_SUB = """\
# calibrates one file
executable = bin/calibrate.sh
arguments = "$(path) $(frames)"
geometry = agipd
transfer_input_files = $(geometry).json, /data/constants.h5
request_memory = 2GB
queue
"""


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    return path


def write_ten_lines(folder: Path) -> Path:
    write(folder, "calibrate.sub", CALIBRATE_SUB)
    write(folder, "bin/calibrate.sh", "#!/bin/sh\necho calibrating $1\n")
    write(folder, "agipd.json", "{}\n")
    return write(folder, "flow.py", TEN_LINES)


def flow(folder: Path, text: str, name: str = "flow.py") -> Flow:
    return load(write(folder, name, text))


def documents(flow: Flow, **options: Any) -> Documents:
    return {(collection, name): doc for collection, name, doc in flow.documents(namespace="ns", **options)}


def annotated(document: dict[str, Any]) -> dict[str, Any]:
    return {item["key"]: item["value"] for item in document["annotations"]}


def archive(document: dict[str, Any]) -> zipfile.ZipFile:
    return zipfile.ZipFile(io.BytesIO(base64.b64decode(document["exec"]["code"], validate=True)))


def unpack(document: dict[str, Any], folder: Path) -> Path:
    """Unpack as a worker does, with the executable bits."""
    with archive(document) as zip_file:
        for info in zip_file.infolist():
            zip_file.extract(info, folder)
            (folder / info.filename).chmod(info.external_attr >> 16 & 0o777)
    return folder
