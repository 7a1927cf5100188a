"""`./dev htcondor`: a personal HTCondor pool on this machine, in the foreground, to try things out with."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from pathlib import Path

from tests.htcondor.pool import CondorPool
from tests.htcondor.programs import CondorTrouble


def main() -> int:
    arguments = _parser().parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    pool = None
    try:
        print("starting HTCondor (the first time, it has to be fetched) …", file=sys.stderr, flush=True)
        pool = CondorPool(arguments.dir, suite=arguments.suite)
        pool.start()
        _say(pool, stays=arguments.dir is not None)
        pool.join()
    except KeyboardInterrupt:
        print("\nending …", file=sys.stderr, flush=True)
    except CondorTrouble as trouble:
        print(f"htcondor: {trouble}", file=sys.stderr)
        return 1
    finally:
        if pool is not None:
            with contextlib.suppress(KeyboardInterrupt):  # a second Ctrl-C kills it
                pool.close()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="./dev htcondor", description=__doc__)
    parser.add_argument("--dir", type=Path, help="keep queue, history and logs here, also for the next start")
    parser.add_argument(
        "--suite", choices=("trixie", "sid"), default="trixie", help="the Debian whose HTCondor it is: 23.9, or 25.14"
    )
    return parser


def _say(pool: CondorPool, *, stays: bool) -> None:
    print(f"HTCondor is ready; its jobs are those of {pool.owner} (Ctrl-C ends it).")
    print(f"  data, log    {pool.directory}{'' if stays else ' (removed at the end; --dir keeps it)'}")
    print("  its tools, in another shell:")
    print(f"    export CONDOR_CONFIG={pool.config} PATH={pool.usr}/bin:$PATH")
    print("  in Eventmill's configuration:")
    for line in pool.settings("condor").splitlines():
        print(f"    {line}")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
