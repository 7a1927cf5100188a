"""Plain dataclasses of actions, rules and activations, their ids and states. No I/O of any kind."""

from eventmill.entities import ids
from eventmill.entities.model import Action, Activation, Category, Document, Limits, MapState, Rule, Status
from eventmill.entities.states import TRANSITIONS, State, check_transition

__all__ = [
    "TRANSITIONS",
    "Action",
    "Activation",
    "Category",
    "Document",
    "Limits",
    "MapState",
    "Rule",
    "State",
    "Status",
    "check_transition",
    "ids",
]
