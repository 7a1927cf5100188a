"""`./dev openwhisk`: one OpenWhisk on this machine, in the foreground, to try things out with."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from pathlib import Path

from tests.openwhisk.server import OpenWhisk, OpenWhiskTrouble


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
    parser.add_argument("--dir", type=Path, help="keep the log here")
    return parser


def _say(server: OpenWhisk) -> None:
    print(f"OpenWhisk is ready on {server.url} (Ctrl-C ends it).")
    print(f"  namespaces   {', '.join(sorted(server.keys))}")
    print(f"  their keys   are in {server.keys_file}: unzip -p … standalone.conf")
    print(f"  log          {server.log}")
    print("  the conformance suite, in another shell (it empties the namespaces):")
    print(f"    ./dev test --openwhisk {server.url} --key UUID:KEY [--other-key UUID:KEY]", flush=True)


if __name__ == "__main__":
    sys.exit(main())
