"""`storageInfo`: a file's storage class, and the kind of tape system that it goes to.

Functions of values, with a bounded memo.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

MEMO_MAX: Final = 4096
"""Texts that are remembered: a site has a few hundred storage classes."""
MEMO_CHARACTERS_MAX: Final = 200
"""Longer ones are not: the long form has the file's size in it, and so is never the same."""

_LONG_FORM = re.compile(r"(?:^|;)(sClass|hsm)=([^;]*)")


class Storage(NamedTuple):
    """`atlas:default@osm`, taken apart; None for what is not there. `short`: that text, in place of a long one."""

    short: str | None
    storage_class: str | None
    hsm_type: str | None


def storage(info: str) -> Storage:
    """Take a `storageInfo` apart: at its last `@`, since a storage class may have one; or, before 5.1, by its keys."""
    known = _memo.get(info)
    if known is None:
        known = _storage(info)
        if len(info) <= MEMO_CHARACTERS_MAX and len(_memo) < MEMO_MAX:
            _memo[info] = known
    return known


def _storage(info: str) -> Storage:
    if "=" in info and ";" in info:
        keys = dict(_LONG_FORM.findall(info))
        if "sClass" not in keys:
            return Storage(None, None, None)
        storage_class, hsm = keys["sClass"], keys.get("hsm", "")
        return Storage(f"{storage_class}@{hsm}", storage_class, hsm)
    storage_class, at, hsm = info.rpartition("@")
    return Storage(info, storage_class, hsm) if at else Storage(info, None, None)


_memo: dict[str, Storage] = {}
