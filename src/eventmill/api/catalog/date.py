"""The time: `date`, in UTC."""

from datetime import datetime, timezone
from typing import Any


def main(args: dict[str, Any]) -> dict[str, Any]:
    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")  # noqa: UP017 (any Python 3 runs this)
    return {"date": now.replace("+00:00", "Z")}
