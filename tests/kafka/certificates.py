"""Certificates for a broker on loopback, made by the openssl command: an authority of our own, and a server."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.kafka.jars import KafkaTrouble, program

DAYS = 30


@dataclass(frozen=True, slots=True)
class Certificates:
    """PEM files. `authority`: what a client trusts; `server`: the broker's private key and certificate in one file."""

    authority: Path
    server: Path


def certificates(directory: Path) -> Certificates:
    """Those in `directory`, made if they aren't there."""
    made = Certificates(directory / "authority.pem", directory / "server.pem")
    if not made.server.exists():
        directory.mkdir(parents=True, exist_ok=True)
        _make(directory, made)
    return made


def _make(directory: Path, made: Certificates) -> None:
    authority_key, key, certificate = (directory / name for name in ("authority.key", "server.key", "server.crt"))
    signs = ["basicConstraints=critical,CA:TRUE", "keyUsage=keyCertSign"]
    _request("/CN=Eventmill tests", authority_key, made.authority, signs)
    signed = ["-CA", str(made.authority), "-CAkey", str(authority_key)]
    serves = ["basicConstraints=CA:FALSE", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    _request("/CN=localhost", key, certificate, serves, *signed)
    made.server.write_text(key.read_text() + certificate.read_text())


def _request(subject: str, key: Path, certificate: Path, extensions: Sequence[str], *signed: str) -> None:
    openssl = program("openssl", "openssl")
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    files = ["-keyout", str(key), "-out", str(certificate), "-days", str(DAYS)]
    says = ["-subj", subject, *(word for extension in extensions for word in ("-addext", extension))]
    ran = subprocess.run([*command, *files, *says, *signed], capture_output=True, text=True)
    if ran.returncode != 0:
        raise KafkaTrouble(f"openssl could not make a certificate:\n{ran.stderr}")
