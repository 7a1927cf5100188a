"""Reading the results of a map, whether they came with it or lie in a file."""

from __future__ import annotations

from eventmill.sdk.errors import FlowError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Iterator, Mapping


def results(result: Mapping[str, Any], *, failed: bool = False) -> Iterator[Any]:
    """What the elements of a map have returned, in order, one at a time however many there are.

    `result`: the map's, as the next action gets it. `failed`: instead those that have failed, each as a dict with
    `index`, `activationId` and `error`; there are none unless the map is `partial`.
    """
    href = result.get("href")
    if isinstance(href, str):
        return _lines(href, failed)
    which = "failed" if failed else "items"
    if not isinstance(result.get(which), list):
        raise FlowError(f"results() of what is no map's result: it has neither `{which}` nor `href`")
    return iter(result[which])


def _lines(href: str, failed: bool) -> Iterator[Any]:
    import json
    from urllib.parse import unquote, urlsplit

    with open(unquote(urlsplit(href).path), "rb") as file:
        for line in file:
            value = json.loads(line)
            if failed == (isinstance(value, dict) and "error" in value and "activationId" in value):
                yield value
