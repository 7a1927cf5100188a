"""Archives: what a worker or a batch system gets of a flow. The same sources make the same bytes, on every machine.

So that nothing is deployed anew when nothing has changed, members are sorted, carry no time of their own, and are
stored, not compressed (two versions of zlib need not agree).
"""

from __future__ import annotations

import base64
import io
import re
import zipfile
from pathlib import Path, PurePosixPath
from typing import Dict, List, Tuple, Union

import eventmill
from eventmill.sdk.actions import PythonJob, SubmitJob
from eventmill.sdk.errors import FlowError

CODE_BYTES_MAX = 48 << 20
"""Of an archive as base64 text, as OpenWhisk counts it."""

_LARGEST = 5
_MAIN = '''"""The functions of {file}, by the names that an action's `exec.main` gives."""

from eventmill.sdk.runtime import entry

{entries}
'''
_RUN = '''#!/usr/bin/env python3
"""Runs {attribute} of {file} as a job: parameters from a file, result into a file."""

import sys
import tempfile
import zipfile

with tempfile.TemporaryDirectory(prefix="flow-", dir=".") as code:
    zipfile.ZipFile("flow.zip").extractall(code)
    sys.path.insert(0, code)
    from eventmill.sdk.runtime import run_job

    exit_code = run_job({module!r}, {attribute!r})
sys.exit(exit_code)
'''


class Archive:
    """Files on their way into a zip: contents, or paths that are read when it is made."""

    def __init__(self, what: str, where: str) -> None:
        self.what, self.where = what, where
        self._members: Dict[str, Tuple[Union[bytes, Path], bool]] = {}

    def add(self, name: str, content: Union[bytes, Path], executable: bool = False) -> None:
        """Add one member. Adding the same again is harmless, another one under its name is an error."""
        if self._members.setdefault(name, (content, executable))[0] != content:
            raise FlowError(f"{self.what}: two files want to be '{name}': rename one of them", self.where)

    def add_path(self, root: Path, name: str, executable: bool = False) -> None:
        """Add a file or a whole folder below `root` under its relative name."""
        path = root / _relative(name, self)
        if path.is_file():
            self.add(PurePosixPath(name).as_posix(), path, executable or bool(path.stat().st_mode & 0o100))
        elif path.is_dir():
            for file in sorted(p for p in path.rglob("*") if p.is_file() and "__pycache__" not in p.parts):
                self.add_path(root, file.relative_to(root).as_posix())
        else:
            raise FlowError(f"{self.what}: there is no '{name}' beside the flow", self.where)

    def zipped(self) -> bytes:
        """The zip. Raises FlowError with the largest files if it is too large."""
        self._check_size()
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as zip_file:
            for name, (content, executable) in sorted(self._members.items()):
                info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
                info.create_system = 3  # Unix: the mode counts
                info.external_attr = (0o100755 if executable else 0o100644) << 16
                zip_file.writestr(info, content if isinstance(content, bytes) else content.read_bytes())
        return buffer.getvalue()

    def base64(self) -> str:
        return base64.b64encode(self.zipped()).decode()

    def _check_size(self) -> None:
        sizes = {
            name: len(content) if isinstance(content, bytes) else content.stat().st_size
            for name, (content, _) in self._members.items()
        }
        total = sum(sizes.values()) * 4 // 3
        if total > CODE_BYTES_MAX:
            largest = sorted(sizes, key=lambda name: -sizes[name])[:_LARGEST]
            listed = ", ".join(f"{name} ({sizes[name] / (1 << 20):.1f} MB)" for name in largest)
            raise FlowError(
                f"{self.what}: its files make {total / (1 << 20):.0f} MB as base64, at most "
                f"{CODE_BYTES_MAX >> 20} are allowed; the largest: {listed}. Leave large data where they are stored "
                "and pass their names",
                self.where,
            )


def function_archive(archive: Archive, module: str, attributes: List[str]) -> Archive:
    """Complete an archive of a flow's own files: the SDK, and a `__main__.py` with one callable per function."""
    entries = "\n".join(f"{name} = entry({module!r}, {name!r})" for name in attributes)
    archive.add("__main__.py", _MAIN.format(file=f"{module}.py", entries=entries).encode())
    package = Path(eventmill.__file__).parent
    archive.add("eventmill/__init__.py", package / "__init__.py")
    for file in sorted(package.glob("sdk/*.py")):
        archive.add(f"eventmill/sdk/{file.name}", file)
    return archive


def python_job_archive(job: PythonJob, root: Path, flow_zip: bytes, module: str, attribute: str) -> Archive:
    """A plain-Python job: its description, the script that runs it, the flow."""
    archive = Archive(f"job '{job.name}'", job.where)
    archive.add("flow.zip", flow_zip)
    archive.add("run.py", _RUN.format(file=f"{module}.py", module=module, attribute=attribute).encode(), True)
    archive.add("job.sub", _description(job, module).encode())
    for name in job.include:
        archive.add_path(root, name)
    return archive


def submit_job_archive(job: SubmitJob, root: Path) -> Archive:
    """A submit description as `job.sub`, with the files that it names by relative names."""
    archive = Archive(f"job '{job.name}'", job.where)
    path = root / _relative(job.file, archive)
    if not path.is_file():
        raise FlowError(f"job '{job.name}': there is no '{job.file}' beside the flow", job.where)
    text = path.read_text(encoding="utf-8")
    archive.add("job.sub", text.encode())
    commands = _commands(text)
    executable = _expanded(commands.get("executable", ""), commands)
    if not executable or "$(" in executable:
        raise FlowError(f"{job.file}: executable = {executable or '…'}: it must name a program", job.where)
    if commands.get("transfer_executable", "true").lower() not in ("false", "no", "0") and _packed(executable):
        archive.add_path(path.parent, executable, executable=True)
    inputs = [commands.get("input", ""), *commands.get("transfer_input_files", "").split(",")]
    for name in (_expanded(item, commands).strip() for item in inputs):
        # what a parameter completes is known when it runs; such files are packed by include=
        if name and "$(" not in name and _packed(name):
            archive.add_path(path.parent, name.rstrip("/"))
    for name in job.include:
        archive.add_path(path.parent, name)
    return archive


def _description(job: PythonJob, module: str) -> str:
    for name in job.include:
        if re.search(r"[,\s]", name):
            raise FlowError(f"job '{job.name}': include {name!r}: no commas or blanks are possible there", job.where)
    commands = {
        "universe": "vanilla",
        "executable": "run.py",
        "transfer_input_files": ", ".join(("flow.zip", *job.include)),
        "should_transfer_files": "YES",
        "when_to_transfer_output": "ON_EXIT",
        "request_cpus": str(job.cpus),
        "request_memory": f"{job.memory_mb}MB",
    }
    for key in job.submit:
        if key != "universe" and key.strip().lower() in (*commands, "arguments", "queue"):
            raise FlowError(f"job '{job.name}': submit command '{key}' is made by mill.job itself", job.where)
    lines = [f"# {job.name} of {module}.py"]
    lines += [f"{key} = {value}" for key, value in {**commands, **job.submit}.items()]
    return "\n".join([*lines, "queue", ""])


def _commands(text: str) -> Dict[str, str]:
    """The `key = value` lines of a description, keys in lower case: just enough to find its files.

    The server's reader decides what is accepted; here nothing is refused.
    """
    joined = re.sub(r"\\\r?\n", "", text)
    pairs = (line.split("=", 1) for line in joined.splitlines() if "=" in line and not line.lstrip().startswith("#"))
    return {key.strip().lower(): value.strip() for key, value in pairs}


def _expanded(value: str, commands: Dict[str, str]) -> str:
    """Replace `$(name)` by what the description itself defines; what it does not define stays."""
    for _ in range(10):  # a macro may name another one; one that names itself must end
        replaced = re.sub(r"\$\((\w+)\)", lambda m: commands.get(m[1].lower(), m[0]), value)
        if replaced == value:
            break
        value = replaced
    return value


def _packed(name: str) -> bool:
    """Whether a file travels with the flow: not if it is a URL or lies on the access point."""
    return "://" not in name and not name.startswith("/")


def _relative(name: str, archive: Archive) -> str:
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise FlowError(f"{archive.what}: '{name}' lies outside of the flow's folder: move it there", archive.where)
    return name
