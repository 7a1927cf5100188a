"""`./dev kafka`: one Kafka broker on this machine, in the foreground, to try things out with."""

from __future__ import annotations

import argparse
import contextlib
import re
import signal
import sys
from pathlib import Path

from tests.kafka.broker import Broker
from tests.kafka.jars import KafkaTrouble


def main() -> int:
    arguments = _parser().parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    broker = None
    try:
        broker = Broker(arguments.dir, port=arguments.port)
        print("starting Kafka (the first time, Maven has to bring it) …", file=sys.stderr, flush=True)
        broker.start()
        _make_topics(broker, dict(arguments.topic))
        _say(broker, stays=arguments.dir is not None)
        broker.join()
    except KeyboardInterrupt:
        print("\nending …", file=sys.stderr, flush=True)
    except KafkaTrouble as trouble:
        print(f"kafka: {trouble}", file=sys.stderr)
        return 1
    finally:
        if broker is not None:
            _end(broker)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="./dev kafka", description=__doc__)
    parser.add_argument("--port", type=_port, default=9092, help="default 9092; 0: any that is free")
    parser.add_argument("--dir", type=Path, help="keep topics and records here, also for the next start")
    parser.add_argument(
        "--topic",
        type=_topic,
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME:PARTITIONS",
        help="topics to make if they aren't there (PARTITIONS: default 1)",
    )
    return parser


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: a number up to 65535")
    return int(text)


def _topic(text: str) -> tuple[str, int]:
    """`billing:4` is ("billing", 4), `billing` is ("billing", 1)."""
    parts = re.fullmatch(r"([A-Za-z0-9._-]{1,249})(?::([1-9][0-9]{0,3}))?", text)
    if parts is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME:PARTITIONS, as in billing:4")
    return parts[1], int(parts[2] or 1)


def _make_topics(broker: Broker, wanted: dict[str, int]) -> None:
    for name, partitions in wanted.items():
        if not broker.partitions(name):
            broker.create_topic(name, partitions)


def _say(broker: Broker, *, stays: bool) -> None:
    topics = broker.admin().list_topics(timeout=10).topics.values()
    mine = [f"{t.topic}:{len(t.partitions)}" for t in topics if not str(t.topic).startswith("__")]
    print(f"Kafka is ready on {broker.bootstrap} (Ctrl-C ends it).")
    print(f"  topics       {', '.join(sorted(mine)) or 'none yet'}")
    print(f"  data, log    {broker.directory}{'' if stays else ' (removed at the end; --dir keeps it)'}")
    if not mine:
        print(f"  make one     {_topic_command(broker)}  (or start with --topic billing:2)")
    print("  in Eventmill's configuration:")
    print("    [backbone]")
    print('    kind = "kafka"')
    print(f'    brokers = "{broker.bootstrap}"', flush=True)


def _topic_command(broker: Broker) -> str:
    """Makes a topic while the broker runs. Kafka's own tool is not among the jars; its client for Python is there."""
    return (
        f'{sys.executable} -c "from confluent_kafka.admin import AdminClient, NewTopic; '
        f"a = AdminClient({{'bootstrap.servers': '{broker.bootstrap}'}}); "
        "a.create_topics([NewTopic('billing', 2)])['billing'].result()\""
    )


def _end(broker: Broker) -> None:
    """In good order; a second Ctrl-C kills it."""
    with contextlib.suppress(KeyboardInterrupt, KafkaTrouble):
        broker.stop()
    broker.close()


if __name__ == "__main__":
    sys.exit(main())
