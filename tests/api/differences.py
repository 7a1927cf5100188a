"""Where our answers differ from OpenWhisk's on purpose: docs/openwhisk.md has a row for each of STATED."""

from __future__ import annotations

STATED = {
    "a key for everything": "The info document, `/ping` and the API's description need a key, as all but `/healthz` "
    "and `/readyz` does; and the key is asked for before anything is said about a path or a verb.",
    "rates": "There are no rates per minute.",
    "kinds": "The kinds are ours: a refusal of another one, and the info document, list them.",
    "sizes": "The size of a result is that of its JSON without blanks, not that of what a proxy has printed.",
    "no keys for functions": "A function is given no `__OW_API_KEY`, whatever its annotation `provide-api-key` says: "
    "we know no key of a namespace, only its digest.",
    "pinned sequences": "A sequence's components, and their versions, are fixed when it begins: one that is gone "
    "ends it before the first step, and the error names it.",
    "arrays of web actions": "A web action may return an array: it is answered under `.json`; under the other "
    "extensions it is refused like any result that does not fit (400, 404) instead of with a 500.",
    "lists of conductors": "A conductor that returns a list gets a 500 as there, but with its activation, which "
    "says why.",
    "not yet": "to be mended",
}
"""A name, and what it means for users."""

DIFFERENT: dict[tuple[str, int], str] = {
    **dict.fromkeys([("routes", step) for step in (1, 2, 3, 8, 9)], "a key for everything"),
    ("routes", 5): "rates",
    ("conductors", 23): "lists of conductors",
    ("action-refusals", 2): "kinds",
    ("action-refusals", 8): "not yet",
    ("packages", 9): "not yet",
    ("results", 27): "not yet",
    ("results", 31): "sizes",
    ("results", 38): "no keys for functions",
    ("triggers-rules", 17): "not yet",
    ("triggers-rules", 37): "not yet",
    ("sequences", 26): "pinned sequences",
    ("web-responses", 26): "arrays of web actions",
    ("web-responses", 27): "arrays of web actions",
}
"""Steps whose answer is meant to be another one, and by which difference."""
