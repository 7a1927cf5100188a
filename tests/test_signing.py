"""A token opens what it was made for, and nothing else."""

from __future__ import annotations

import pytest

from eventmill.signing import KEY_BYTES, Signer, new_key


def test_a_token_is_for_one_purpose_and_one_thing() -> None:
    signer = Signer(new_key())
    token = signer.sign("end", "a", "1")
    assert signer.check(token, "end", "a", "1")
    for purpose, *parts in (("end", "a", "2"), ("key", "a", "1"), ("end", "a1"), ("end", "a", "1", ""), ("", "enda1")):
        assert not signer.check(token, purpose, *parts)
    assert not signer.check("", "end", "a", "1")
    assert not signer.check(token + "ä", "end", "a", "1")


def test_another_key_makes_other_tokens() -> None:
    assert Signer(new_key()).sign("end") != Signer(new_key()).sign("end")
    with pytest.raises(ValueError, match=str(KEY_BYTES)):
        Signer(b"short")
