"""Entities, activations, ledger, dead letters and positions: all that must be written together, in one place."""

from eventmill.store.activations import Element
from eventmill.store.base import Place, Store, Tx
from eventmill.store.dead_letters import DeadLetter
from eventmill.store.entities import COLLECTIONS, Change, Entities, Stored, to_action
from eventmill.store.keys import Identity, Key
from eventmill.store.sqlite import SqliteStore

__all__ = [
    "COLLECTIONS",
    "Change",
    "DeadLetter",
    "Element",
    "Entities",
    "Identity",
    "Key",
    "Place",
    "SqliteStore",
    "Store",
    "Stored",
    "Tx",
    "to_action",
]
