"""HTCondor's programs: Debian's packages, unpacked once into a cache directory of the working tree.

Nothing is installed and no root is needed. A suite that is newer than this machine's comes with its own C library: the
programs are pointed at the loader and the libraries that lie beside them. A directory in the cache is complete or not
there; one process unpacks at a time.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

CACHE = Path(__file__).parents[2] / ".cache" / "condor"
PACKAGES = (
    "condor", "libc6", "libgcc-s1", "libstdc++6", "libgomp1", "libpcre2-8-0", "libsqlite3-0", "libssl3t64", "zlib1g",
    "libzstd1", "libuuid1", "libscitokens0t64", "libmunge2", "patchelf",
)  # fmt: skip
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
FETCH_TIMEOUT_S = 600
LIBRARIES = ("usr/lib", "usr/lib/x86_64-linux-gnu")
LOADER = "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"


class CondorTrouble(RuntimeError):
    """HTCondor can't be had, or does not start; the message says what to do."""


def programs(suite: str = "trixie", cache: Path = CACHE) -> Path:
    """The directory with `usr/bin`, `usr/sbin` and so on, unpacked if it isn't there. Raises CondorTrouble."""
    directory = cache / suite
    if directory.exists():
        return directory
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not directory.exists():  # somebody else may have done it while we waited
            _fetch(suite, directory)
    return directory


def _fetch(suite: str, directory: Path) -> None:
    for name in ("apt-get", "dpkg-deb"):
        if shutil.which(name) is None:
            raise CondorTrouble(f"`{name}` is missing: HTCondor for tests is unpacked from Debian's packages")
    if not KEYRING.exists():
        raise CondorTrouble("Debian's keys are missing: apt-get install debian-archive-keyring")
    for left in directory.parent.glob("fetching-*"):  # by a process that was killed
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix="fetching-", dir=directory.parent) as temporary:
        packages, root = Path(temporary) / "packages", Path(temporary) / "root"
        packages.mkdir()
        root.mkdir()
        _download(suite, Path(temporary) / "apt", packages)
        for package in packages.glob("*.deb"):
            _run("dpkg-deb", "-x", str(package), str(root))
        # pointed at where they will be: nothing is run from where they are now but patchelf
        _point(root, directory)
        os.rename(root, directory)


def _download(suite: str, state: Path, into: Path) -> None:
    """With an apt of its own, which uses the mirror that this machine's uses."""
    targets = _run("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages").split()
    mirror = next((uri for uri in targets if uri.rstrip("/").endswith("/debian")), None)
    if mirror is None:
        raise CondorTrouble("this machine's apt has no Debian mirror to unpack HTCondor from")
    for name in ("lists/partial", "cache/archives/partial", "etc/parts"):
        (state / name).mkdir(parents=True)
    (state / "status").touch()
    (state / "etc/sources.list").write_text(f"deb [signed-by={KEYRING}] {mirror} {suite} main\n")
    (state / "apt.conf").write_text(
        f'Dir::State "{state}"; Dir::State::status "{state}/status"; Dir::State::lists "{state}/lists";\n'
        f'Dir::Cache "{state}/cache"; Dir::Etc::sourcelist "{state}/etc/sources.list";\n'
        f'Dir::Etc::sourceparts "-"; Dir::Etc::preferencesparts "{state}/etc/parts";\n'
        'APT::Sandbox::User "root"; Acquire::Languages "none"; APT::Architectures "amd64";\n'
    )
    environment = {**os.environ, "APT_CONFIG": str(state / "apt.conf")}
    _run("apt-get", "-qq", "update", environment=environment)
    _run("apt-get", "-qq", "download", *PACKAGES, directory=into, environment=environment)


def _point(root: Path, final: Path) -> None:
    """Set loader and library path of every program that has one. DT_RPATH: it reaches the libraries' own needs, too."""
    here = ":".join(str(root / lib) for lib in LIBRARIES)
    there = ":".join(str(final / lib) for lib in LIBRARIES)
    patchelf = Path(f"{root}.patchelf")  # a copy: it is one of those that are changed
    shutil.copy(root / "usr/bin/patchelf", patchelf)
    command = [str(root / LOADER), "--library-path", here, str(patchelf)]
    places = ("usr/sbin/condor_*", "usr/bin/condor_*", "usr/libexec/condor/*", "usr/bin/classad_eval")
    for program in (path for place in places for path in root.glob(place)):
        if program.is_symlink() or not program.is_file() or program.read_bytes()[:4] != b"\x7fELF":
            continue
        if subprocess.run([*command, "--print-interpreter", str(program)], capture_output=True).returncode == 0:
            there_too = ("--set-interpreter", str(final / LOADER), "--force-rpath", "--set-rpath", there)
            _run(*command, *there_too, str(program))


def _run(*command: str, directory: Path | None = None, environment: dict[str, str] | None = None) -> str:
    try:
        ran = subprocess.run(
            command, cwd=directory, env=environment, capture_output=True, text=True, timeout=FETCH_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        raise CondorTrouble(f"{command[0]} has not ended within {FETCH_TIMEOUT_S} s") from None
    if ran.returncode != 0:
        raise CondorTrouble(f"{' '.join(command[:3])} failed:\n{(ran.stdout + ran.stderr)[-3000:]}")
    return ran.stdout
