"""`./dev openwhisk`: one OpenWhisk on this machine, in the foreground, to try things out with."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from pathlib import Path

from tests.openwhisk.server import OpenWhisk, OpenWhiskTrouble

_OF_SUITE = {"--key": "guest", "--other-key": "whisk.system"}


def main() -> int:
    arguments = _parser().parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    server = None
    try:
        print("starting OpenWhisk (the first time, its libraries have to be fetched) …", file=sys.stderr, flush=True)
        server = OpenWhisk(arguments.dir, port=arguments.port)
        server.start()
        _say(server)
        server.join()
    except KeyboardInterrupt:
        print("\nending …", file=sys.stderr, flush=True)
    except OpenWhiskTrouble as trouble:
        print(f"openwhisk: {trouble}", file=sys.stderr)
        return 1
    finally:
        if server is not None:
            with contextlib.suppress(KeyboardInterrupt):
                server.close()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="./dev openwhisk", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="default: any that is free")
    parser.add_argument("--dir", type=Path, help="keep the log and the keys here")
    return parser


def _say(server: OpenWhisk) -> None:
    print(f"OpenWhisk is ready on {server.url} (Ctrl-C ends it).")
    keys = server.write_keys()
    for name, file in sorted(keys.items()):
        print(f"  {f'key of {name}':<20} {file}")
    print(f"  {'log':<20} {server.log}")
    print("  for an Eventmill whose functions it runs, in the configuration:")
    print(f'    [functions]\n    engine = "openwhisk"\n    api_host = "{server.url}"')
    print(f'    key = {{ file = "{keys["guest"]}" }}')
    print("  the conformance suite, in another shell (it makes and deletes entities in both namespaces, and refuses")
    print("  one that has any):")
    options = " ".join(f'{option} "$(cat {keys[name]})"' for option, name in _OF_SUITE.items())
    print(f"    ./dev test --openwhisk {server.url} {options}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
