"""Where our answers differ from OpenWhisk's on purpose: docs/openwhisk.md has a row for each of STATED, and each is
seen in steps of the sessions, or in a test of its own.

`python -m tests.api.differences` writes those rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path

STATED = {
    "a key for everything": "The info document, `/ping` and the API's description need a key, as all but `/healthz` "
    "and `/readyz` does; and the key is asked for before anything is said about a path or a verb.",
    "words of refusals": "What is wrong with a malformed body (the second line of `error`) is said in words of our own "
    "where OpenWhisk's are those of its JSON parser, or mistaken; so is why a composition could not go on.",
    "kinds": "The kinds are those of this server, in the info document and in the refusal of another one. `python:3` "
    "is another name of the one Python that there is, and answers say which that is.",
    "failed starts": "Why code could not be loaded is said in the activation's error, not in its logs alone.",
    "complete logs": "What an action that crashed or ran out of time has printed is in its logs, and so no line there "
    "says that something might be missing.",
    "sizes": "The `size` of a result is that of its JSON without blanks, and the limit is for that; OpenWhisk counts "
    "what the language's own encoder has made of it.",
    "beside an error": "What a function returns besides `error` is kept; OpenWhisk keeps only that.",
    "pinned sequences": "A sequence's components and their versions are fixed when it begins. If one of them is gone, "
    "or no longer open to the caller, it fails before its first step, and the error names the component.",
    "lists of conductors": "A conductor that returns a list gets a 500 as there, but with its activation, which "
    'says why. A list that a component returns comes back to its conductor as `{"value": […]}`.',
    "headers of firings": "An action that a rule starts is not given the headers of the request that fired the trigger "
    "(`__ow_headers`), which have its key among them.",
    "triggers without rules": "A trigger that has lost its last rule has no field `rules`, as before its first; "
    "OpenWhisk's then has an empty one.",
    "lists of web actions": "A web action's result that is a list is JSON under `.json`, the same as text under "
    "`.text`, and refused (400) where a response or a page is needed; OpenWhisk answers 500, in plain text.",
    "credentials of callers": "A web action does not see its callers' `Authorization`, `Proxy-Authorization` and "
    "`X-Require-Whisk-Auth` in `__ow_headers`, unless `server.web_credentials` says so.",
    "what a web action answers": "A `statusCode` below 200, and a header whose name or value HTTP does not allow, make "
    "it a 400; 205 has no body; headers of the connection and of the server are left out; all headers together have "
    "at most 64 KiB (400).",
    "headers for browsers": "An `Access-Control-…` header that a web action sets itself takes the default's place.",
    "pages of web actions": "They are answered with `content-security-policy: sandbox allow-scripts allow-forms`, "
    "unless the action sets a policy of its own: for their browser they come from nowhere, not from where the API is.",
    "requests from pages": "What a browser says to come from a page on the API's own origin (`Sec-Fetch-Site`) is "
    "answered 403, but for web actions; so is what any page can send without having asked and would change something.",
    "keys for feeds": "The key that clients add when they call a feed (`authKey`) is dropped, since parameters of "
    "calls are kept: only a feed with the annotation `provide-api-key` gets it.",
    "empty names": "A parameter or an annotation needs a name.",
    "numbers": "A number that is too large for a double is refused (400); OpenWhisk hands infinity to the action.",
    "one representation": "The header `Accept` is not looked at: an answer is JSON. OpenWhisk does what is asked and "
    "then answers 406.",
    "updates at once": "Of several updates of one entity at once none is refused (409): they are done one by one.",
    "throttled rules": "Calls and firings are counted and refused as there, but what a firing's rules start is not: it "
    "waits. OpenWhisk drops it, and says so in the logs of the firing's record.",
    "escapes in paths": "`%2F` and `%2E%2E` in a path are read as the characters that they stand for.",
}
"""A name, and what it means for users."""

_PLACES: Mapping[str, Mapping[str, Sequence[int]]] = {
    "a key for everything": {"routes": (1, 2, 3, 9)},
    "words of refusals": {
        "action-refusals": (8,), "wsk-sequence": (23, 24), "parameters": (23, 26), "annotations": (6, 7),
        "kinds": (14, 16), "collections": (42, 46),
    },
    "kinds": {"action-refusals": (2,), "kinds": (3,), "deprecated": (1,)},
    "failed starts": {"kinds": (12,), "results": (10, 12)},
    "complete logs": {"results": (27,)},
    "sizes": {"results": (31,)},
    "beside an error": {"nodejs": (12,)},
    "pinned sequences": {"sequences": (26,), "published": (44,)},
    "lists of conductors": {"conductors": (23,)},
    "headers of firings": {"triggers-rules": (17,)},
    "triggers without rules": {"wsk-trigger": (21,), "wsk-sequence": (21,), "wskdeploy": (12,)},
    "lists of web actions": {"web-responses": (26, 27)},
    "empty names": {"parameters": (18,)},
    "numbers": {"bodies": (33,)},
    "one representation": {"accepts": (6, 8, 10, 12, 13), "accept": (1,)},
    "updates at once": {"conflict": (2,)},
    "throttled rules": {"throttling": (7,)},
    "escapes in paths": {"paths": (11, 12)},
}  # fmt: skip
DIFFERENT = {
    (session, step): name for name, places in _PLACES.items() for session, steps in places.items() for step in steps
}
"""Steps whose answer is meant to be another one, and by which difference."""

_TESTS = {
    "credentials of callers": ("test_web", "test_credentials_are_not_for_actions"),
    "what a web action answers": ("test_web", "test_status_codes"),
    "headers for browsers": ("test_web", "test_the_frame_of_an_answer_is_the_servers"),
    "pages of web actions": ("test_web", "test_pages_of_actions_are_strangers_to_the_api"),
    "requests from pages": ("test_front", "test_a_browser_that_remembers_a_key_is_no_way_in"),
    "keys for feeds": ("test_feeds", "test_a_feed_of_ones_own_gets_a_key_if_it_says_so"),
}
"""Differences that no session shows: module and name of a test that does."""

PAGE = Path(__file__).parents[2] / "docs/openwhisk.md"
HEAD = "## Where we differ\n\n| what | how |\n| --- | --- |\n"


def rows() -> str:
    """The table of the page."""
    return "".join(f"| {name} | {text} |\n" for name, text in STATED.items())


def seen() -> set[str]:
    """The differences that something shows. Raises AttributeError for a test that is not there."""
    for module, test in _TESTS.values():
        getattr(import_module(f"tests.api.{module}"), test)
    return {*DIFFERENT.values(), *_TESTS}


def main() -> None:
    before, _, after = PAGE.read_text().partition(HEAD)
    PAGE.write_text(before + HEAD + rows() + after[after.index("\n##") :])


if __name__ == "__main__":
    main()
