"""Patterns over events: their language, the index that finds those an event matches, and explanations. No I/O."""

from eventmill.rules.explain import Condition, Explanation, explain
from eventmill.rules.globs import glob_matches, glob_root
from eventmill.rules.index import Index
from eventmill.rules.matching import matches
from eventmill.rules.pattern import Pattern, parse

__all__ = [
    "Condition",
    "Explanation",
    "Index",
    "Pattern",
    "explain",
    "glob_matches",
    "glob_root",
    "matches",
    "parse",
]
