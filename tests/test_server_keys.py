"""The root key and the signing key, in their files: made once, and again if they are lost or damaged."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from eventmill.server import DEFAULT_NAMESPACE, _first_key, _signer, replace_file
from eventmill.signing import KEY_BYTES
from eventmill.store import SqliteStore


def keys(directory: Path, damaged: bytes | None) -> tuple[str, str, int]:
    """(the first start's key, that of a start with this in its file (None: without one), how many open the server)."""

    async def work() -> tuple[str, str, int]:
        store = SqliteStore.open(directory / "store.db")
        try:
            first = await _first_key(store, directory)
            assert await _first_key(store, directory) == first
            (directory / "key").unlink()
            if damaged is not None:
                (directory / "key").write_bytes(damaged)
            second = await _first_key(store, directory)
            assert await _first_key(store, directory) == second
            return first, second, len(await store.read(lambda tx: tx.keys.of(DEFAULT_NAMESPACE)))
        finally:
            store.close()

    return asyncio.run(work())


@pytest.mark.parametrize("damaged", [None, b"", b"\xff\xfe:x", b"no key"])
def test_a_lost_key_is_replaced_not_withdrawn(
    tmp_path: Path, damaged: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    first, second, count = keys(tmp_path, damaged)
    assert first != second
    assert count == 2
    [record] = caplog.records
    assert "'eventmill namespaces rotate default' withdraws them" in record.message
    assert second not in record.message
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("damaged", [b"", b"\xff", b"00" * (KEY_BYTES - 1), b"zz" * KEY_BYTES])
def test_a_damaged_signing_key_is_replaced(tmp_path: Path, damaged: bytes, caplog: pytest.LogCaptureFixture) -> None:
    token = _signer(tmp_path).sign("purpose", "part")
    assert _signer(tmp_path).check(token, "purpose", "part")
    assert not caplog.records
    (tmp_path / "signing-key").write_bytes(damaged)
    other = _signer(tmp_path)
    assert not other.check(token, "purpose", "part")
    assert "is damaged" in caplog.text
    assert _signer(tmp_path).check(other.sign("purpose"), "purpose")


def test_a_file_is_replaced_whatever_was_left_over(tmp_path: Path) -> None:
    (tmp_path / "address.new").write_text("of a server that was killed")
    for text in ("one", "two"):
        replace_file(tmp_path / "address", text, 0o644)
        assert [file.name for file in tmp_path.iterdir()] == ["address"]
        assert (tmp_path / "address").read_text() == text
