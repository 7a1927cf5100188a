"""What of a record is about a person, and how it is kept out of events.

About a person are: principals (`subject`), `owner`, mapped ids, the client's addresses, and what of these is quoted in
a status message. *Dropped*, they are gone. *Hashed*, each value has a pseudonym, so that two events of one user still
show that. Without a secret key they are no protection against somebody who can guess, since addresses and ids are few
and can all be tried; with one, only who has the key can try. Another key makes other pseudonyms.
The names of files are not taken to be about a person. Tokens are taken out whatever is kept.

Changes the record that it is given. Functions of values, with bounded memos; never raises, whatever is in a record.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final, Literal, NamedTuple

from eventmill.events.dcache.kinds import Record
from eventmill.events.dcache.storage import storage
from eventmill.events.dcache.tokens import MASK, name_and_version, without_query, without_tokens
from eventmill.events.digest import digest

Personal = Literal["drop", "hash", "keep"]

PSEUDONYM_CHARACTERS: Final = 16
MEMO_MAX: Final = 8192
"""Principals and addresses whose pseudonyms are remembered: the same users come again and again."""
MEMO_CHARACTERS_MAX: Final = 256
"""Longer values are not remembered."""
NAME_CHARACTERS_MIN: Final = 3
"""What is shorter is not looked for in messages: it would be found in every other word."""
NAMES_MAX: Final = 200
"""Nobody has more; the message of a record that does is masked as a whole."""

_PRINCIPAL = re.compile(r"([A-Z][A-Za-z]*)\[(.*?)(,primary)?\]", re.DOTALL)
_OF_MANY_PEOPLE: Final = ("GidPrincipal", "GroupNamePrincipal", "FQANPrincipal", "RolePrincipal")


class Realm(NamedTuple):
    """Within it a value has one pseudonym: an instance of dCache, and the secret that pseudonyms are made with."""

    instance: str
    key: bytes


def cleaner(personal: Personal, instance: str, key: bytes = b"") -> Callable[[Record], None]:
    """What has to be done with every record of this instance of dCache. `key`: the secret of its pseudonyms."""
    if personal == "keep":
        return _keep
    realm = Realm(instance, blake2b(key).digest() if len(key) > blake2b.MAX_KEY_SIZE else key)
    return _drop if personal == "drop" else lambda record: _hash(record, realm)


def pseudonym(realm: Realm, value: str) -> str:
    """What stands for this value in all events of the realm."""
    hashed: str = _remembered(_pseudonym, value, realm)
    return hashed


@lru_cache(MEMO_MAX)
def _pseudonym(value: str, realm: Realm) -> str:
    return digest("personal", realm.instance, value, key=realm.key)[:PSEUDONYM_CHARACTERS]


def _remembered(function: Any, value: str, *more: Realm) -> Any:
    """Call a memoised function; what is long goes past its memo, which is limited in entries but not in their size."""
    return function(value, *more) if len(value) <= MEMO_CHARACTERS_MAX else function.__wrapped__(value, *more)


def _keep(record: Record) -> None:
    if "protocol" in record:
        _replace(record, "protocol", lambda text: without_query(text) if isinstance(text, str) else None)
    _clean_messages(record, quoted=False)


def _drop(record: Record) -> None:
    status = record.get("status")
    if "moverInfo" in record or (isinstance(status, dict) and status.get("msg")):
        _clean_messages(record, quoted=True)
    _drop_fields(record)
    if "moverInfo" in record:
        _replace(record, "moverInfo", _mover)
    if "protocol" in record:
        _replace(record, "protocol", lambda text: name_and_version(text) if isinstance(text, str) else None)
    if "locations" in record:
        _replace(record, "locations", _locations)
    info = record.get("storageInfo")
    if isinstance(info, str) and ";" in info:
        _replace(record, "storageInfo", lambda text: storage(text).short)


def _drop_fields(part: Record) -> None:
    """Of a record, or of the `moverInfo` in it."""
    pop = part.pop
    pop("subject", None)
    pop("owner", None)
    pop("client", None)
    pop("clientChain", None)
    pop("mappedUID", None)
    pop("mappedGID", None)
    protocol = part.get("protocolInfo")
    if isinstance(protocol, dict):
        protocol.pop("host", None)
    elif protocol is not None:
        del part["protocolInfo"]


def _hash(record: Record, realm: Realm) -> None:
    hashed = [(part, _pseudonyms(part, realm), _host(part)) for part in _parts(record)]
    _drop(record)
    for part, values, host in hashed:
        part.update(values)
        if host is not None:
            part["protocolInfo"]["host"] = pseudonym(realm, host)


def _replace(record: Record, name: str, change: Callable[[Any], Any]) -> None:
    """Change the value of a field; the field goes if nothing of it may stay."""
    value = record[name] = change(record[name])
    if value is None:
        del record[name]


def _mover(value: Any) -> Any:
    """The pool's part of a door's record, cleaned; there is none within it."""
    if not isinstance(value, dict):
        return None
    value.pop("moverInfo", None)
    _drop_fields(value)
    return value


def _locations(value: Any) -> Any:
    return [without_query(uri) for uri in value if isinstance(uri, str)] if isinstance(value, list) else None


def _parts(record: Record) -> list[Record]:
    mover = record.get("moverInfo")
    return [record, mover] if isinstance(mover, dict) else [record]


def _host(part: Record) -> str | None:
    protocol = part.get("protocolInfo")
    host = protocol.get("host") if isinstance(protocol, dict) else None
    return host if isinstance(host, str) else None


# messages


def _clean_messages(record: Record, *, quoted: bool) -> None:
    """Take tokens out of the status messages, and, if `quoted`, what they quote of the record's personal fields."""
    found = [part.get("status") for part in _parts(record)]
    statuses = [status for status in found if isinstance(status, dict) and status.get("msg")]
    names = _names(record) if quoted and statuses else ()
    for status in statuses:
        _replace(status, "msg", lambda text: _clean_message(text, names) if isinstance(text, str) else None)


def _clean_message(message: str, names: Collection[str]) -> str:
    if len(names) > NAMES_MAX:
        return MASK
    message = without_tokens(message)
    found = [name for name in names if name in message]
    for name in sorted(found, key=lambda name: (-len(name), name)):  # one may be part of another
        message = message.replace(name, MASK)
    return message


def _names(record: Record) -> set[str]:
    """What a message may quote. Numbers are left alone: a message is full of them."""
    names: set[str] = set()
    for part in _parts(record):
        principals = part.get("subject")
        for principal in principals if isinstance(principals, list) else ():
            if isinstance(principal, str):
                names.update(_remembered(_names_in_principal, principal))
        for value in (part.get("owner"), part.get("client"), part.get("clientChain"), _host(part)):
            if isinstance(value, str):
                names.update(_remembered(_names_in, value))
    return names


@lru_cache(MEMO_MAX)
def _names_in_principal(principal: str) -> tuple[str, ...]:
    match = _PRINCIPAL.fullmatch(principal)
    if match is None or match[1] in _OF_MANY_PEOPLE:
        return _names_in(principal)
    return _names_in(principal) + _names_in(match[2])


@lru_cache(MEMO_MAX)
def _names_in(value: str) -> tuple[str, ...]:
    """A value, and the parts of one that is a chain of addresses, as far as they can be told from other words."""
    words = (value, *value.split(","))
    return tuple(w for w in words if len(w) >= NAME_CHARACTERS_MIN and not w.isdigit() and w.lower() != "unknown")


# pseudonyms


def _pseudonyms(part: Record, realm: Realm) -> Record:
    """The personal fields of a record, or of the `moverInfo` in it, with pseudonyms for values."""
    found: Record = {
        name: pseudonym(realm, value)
        for name in ("owner", "client", "clientChain")
        if isinstance(value := part.get(name), str)
    }
    for name in ("mappedUID", "mappedGID"):
        value = part.get(name)
        if value.__class__ is int and value != -1:  # which is none
            found[name] = pseudonym(realm, str(value))
    principals = part.get("subject")
    if isinstance(principals, list):
        found["subject"] = [_remembered(_hashed_principal, p, realm) for p in principals if isinstance(p, str)]
    return found


@lru_cache(MEMO_MAX)
def _hashed_principal(principal: str, realm: Realm) -> str:
    """`UidPrincipal[3f…]`: the kind stays. A bare name (of a certificate, of Kerberos) is a bare pseudonym."""
    match = _PRINCIPAL.fullmatch(principal)
    if match is None:
        return pseudonym(realm, principal)
    values = match[2].split(",") if match[1] == "Origin" else [match[2]]
    return f"{match[1]}[{','.join(pseudonym(realm, value) for value in values)}{match[3] or ''}]"
