"""The demo: a detector writes, functions look, jobs reduce, a catalogue fills. Prints the way of every file.

    ./dev demo                      run it; it ends by itself
    ./dev demo --runs 50 --rate 20  more, and faster
    ./dev demo --serve              leave the server running, and go on writing runs by hand
    ./dev demo --config site.toml   on another backbone or batch system; the flow file stays as it is
    ./dev demo --kafka              on a Kafka of its own, with dCache's records of the files (kafka.toml)
    ./dev demo --condor             with an HTCondor pool of its own (goes together with --kafka)
    ./dev demo --openwhisk          functions run by an OpenWhisk of its own (goes together with both)

It uses nothing but the command line (`eventmill run flow.py --json`) and reads what that prints.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from rich import box
from rich.console import Console
from rich.table import Table

from eventmill.config import load

if TYPE_CHECKING:
    from storage import Storage

    from eventmill.config import Pool

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

DCACHE = "/pnfs/example.org/detector"
"""What dCache calls the directory of all demos."""
PATIENCE_S = 120
"""The demo gives up when nothing has happened for this long."""


class Demo:
    """What is known of every file: when it was closed, and the activations that it led to."""

    def __init__(self, directory: Path, storage: Storage | None) -> None:
        self.directory = directory
        self.storage = storage
        self.closed: dict[str, float] = {}
        """When each file was closed, or, with a storage, told of: seconds since 1970."""
        self.inspected: dict[str, dict[str, Any]] = {}
        self.chains: dict[str, dict[str, Any]] = {}
        self.steps: dict[tuple[str, int], dict[str, Any]] = {}
        self.letters: list[dict[str, Any]] = []
        self.total: int | None = None
        self.news = threading.Condition()

    def take(self, line: dict[str, Any]) -> None:
        """Sort in one line of `eventmill run --json`."""
        with self.news:
            if line["kind"] == "dead-letter":
                self.letters.append(line)
            elif line["action"].endswith("/inspect"):
                self.inspected[line["activationId"]] = line
            elif line["category"] == "sequence":
                self.chains[line["cause"]["id"].split("-")[0]] = line
            elif line["parent"] is not None:
                self.steps[line["parent"], line["index"]] = line
            self.news.notify()

    def worth(self) -> list[str]:
        return [id for id, line in self.inspected.items() if line["result"].get("worth")]

    def complete(self) -> bool:
        """Every file inspected, and every chain that it led to ended."""
        ended = all(id in self.chains for id in self.worth())
        return self.total is not None and len(self.inspected) >= self.total and ended

    def wait(self) -> None:
        with self.news:
            while not self.complete():
                if not self.news.wait(PATIENCE_S):
                    raise SystemExit(f"nothing has happened for {PATIENCE_S} s: see {self.directory / 'server.log'}")


def main() -> int:
    options = _options()
    directory = options.directory.absolute()
    (directory / "raw").mkdir(parents=True, exist_ok=True)
    console = Console()
    shown = _relative(directory)
    console.print(f"[bold]Eventmill demo[/bold]: {options.runs} runs, {options.rate:g} a second, into {shown}/raw")
    with contextlib.ExitStack() as stack:
        stack.enter_context(_openwhisk(console, options))
        stack.enter_context(_kafka(console, options))
        pool = stack.enter_context(_condor(console, options))
        config = _configured(directory, options.config, pool)
        demo = Demo(directory, _storage(console, config))
        process, ready = stack.enter_context(_server(directory, config))
        threading.Thread(target=_read, args=(process, demo, directory), daemon=True).start()
        ready()
        if demo.storage is not None:
            _until_read(directory, demo.storage.partitions)
        _expose(demo, directory, options)
        demo.wait()
        table = _table(demo)
        console.print(table)
        _summary(console, demo, directory)
        _history(console, demo, config)
        if options.serve:
            _hints(console, demo)
            with contextlib.suppress(KeyboardInterrupt):
                signal.pause()
        else:
            console.print("look closer: ./dev demo --serve leaves the server running")
    return 1 if demo.letters else 0


def _relative(path: Path) -> str:
    """As one would type it here."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _hints(console: Console, demo: Demo) -> None:
    """What to do with a server that goes on: lines to paste."""
    python, state = Path(sys.executable), demo.directory / ".eventmill"
    eventmill = _relative(python.with_name("eventmill"))
    console.print(f"still serving at {(state / 'address').read_text().strip()}; Ctrl-C ends it. In another shell:")
    more = f"{_relative(python)} {_relative(HERE / 'detector.py')} {_relative(demo.directory)}/raw"
    if demo.storage is not None:
        more = f"{eventmill} record {demo.storage.topic} --brokers {demo.storage.brokers}"
    for command in (
        more,
        f"{eventmill} activations list --data-dir {_relative(state)}",
    ):
        console.print(f"  {command}", soft_wrap=True, highlight=False)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev demo", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=20, help="how many runs the detector writes (20)")
    parser.add_argument("--rate", type=float, default=5, help="runs per second (5)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--serve", action="store_true", help="keep running until Ctrl-C")
    parser.add_argument(
        "--config", type=Path, help="configuration to start from (another backbone, another batch system)"
    )
    parser.add_argument("--kafka", action="store_true", help="start a Kafka broker for it")
    parser.add_argument("--condor", action="store_true", help="start an HTCondor pool for it")
    parser.add_argument("--openwhisk", action="store_true", help="start an OpenWhisk for it")
    parser.add_argument("--directory", type=Path, default=Path("demo-results") / time.strftime("%Y%m%d-%H%M%S"))
    return parser.parse_args()


@contextlib.contextmanager
def _in_a_line(trouble: type[Exception]) -> Iterator[None]:
    """What can't be started here is no traceback: its message says what to do."""
    try:
        yield
    except trouble as e:
        raise SystemExit(f"demo: {e}") from e


@contextlib.contextmanager
def _kafka(console: Console, options: argparse.Namespace) -> Iterator[None]:
    """A broker, if one is wanted."""
    if not options.kafka:
        yield
        return
    sys.path.insert(0, str(HERE.parents[1]))
    from tests.kafka.broker import Broker
    from tests.kafka.jars import KafkaTrouble

    options.config = options.config or HERE / "kafka.toml"
    console.print("starting Kafka (the first time, Maven has to bring it) …")
    with _in_a_line(KafkaTrouble), Broker() as broker:
        os.environ["EVENTMILL_BACKBONE__BROKERS"] = broker.bootstrap
        yield


@contextlib.contextmanager
def _condor(console: Console, options: argparse.Namespace) -> Iterator[str]:
    """A pool, if one is wanted; the lines of configuration for it."""
    if not options.condor:
        yield ""
        return
    sys.path.insert(0, str(HERE.parents[1]))
    from tests.htcondor.pool import CondorPool
    from tests.htcondor.programs import CondorTrouble

    console.print("starting HTCondor (the first time, its packages have to be brought) …")
    with _in_a_line(CondorTrouble), CondorPool() as pool:
        # jobs find this Python, which has the flow's libraries
        yield pool.settings("condor") + f'defaults.environment = "PATH={Path(sys.executable).parent}:/usr/bin:/bin"\n\n'


@contextlib.contextmanager
def _openwhisk(console: Console, options: argparse.Namespace) -> Iterator[None]:
    """An OpenWhisk, if one is wanted; its Python is this one, which has the flow's libraries."""
    if not options.openwhisk:
        yield
        return
    sys.path.insert(0, str(HERE.parents[1]))
    from tests.openwhisk.server import OpenWhisk, OpenWhiskTrouble

    console.print("starting OpenWhisk (the first time, its libraries have to be fetched) …")
    os.environ["OW_PYTHON"] = sys.executable
    with _in_a_line(OpenWhiskTrouble), OpenWhisk() as server:
        for name, value in (("engine", "openwhisk"), ("api_host", server.url), ("key", '{"env": "OPENWHISK_KEY"}')):
            os.environ[f"EVENTMILL_FUNCTIONS__{name.upper()}"] = value
        os.environ["OPENWHISK_KEY"] = server.keys["guest"]
        yield


def _configured(directory: Path, base: Path | None, pool: str) -> Path:
    """The configuration: the given one, the pool's lines, and where the detector's files are.

    On Kafka the group, our topic and dCache's name of the directory are this demo's own: what an earlier one has left
    there is not for its store.
    """
    config, stamp = directory / "eventmill.toml", f"{time.time_ns() // 1_000_000:x}"
    own = f'{pool}[[paths]]\nsubject = "/detector"\nsource = "{DCACHE}/{stamp}"\nlocal = "{directory}"\n'
    config.write_text((base.read_text() + "\n" if base else "") + own)
    if load(config).functions.engine == "pool":
        os.environ["EVENTMILL_FUNCTIONS__PRELOAD"] = '["numpy", "h5py"]'
    os.environ["EVENTMILL_BACKBONE__GROUP"] = os.environ["EVENTMILL_BACKBONE__TOPIC"] = f"eventmill-demo-{stamp}"
    return config


def _storage(console: Console, config: Path) -> Storage | None:
    """Who tells of the files, if the configuration has a topic of dCache's."""
    settings = load(config)
    if not any(row.decoder == "dcache" for row in settings.topics):
        return None
    from storage import Storage

    storage = Storage(settings, f"{settings.paths[-1].source}/raw")
    console.print(f"dCache's records go to {storage.topic} on Kafka at {settings.backbone.brokers}")
    return storage


def _until_read(directory: Path, partitions: int) -> None:
    """Until the server has taken all partitions, and its own log: the first files are not to wait for that."""
    deadline = time.monotonic() + PATIENCE_S
    with _client(directory) as client:
        while f"eventmill_partitions {partitions + 1}.0" not in client.get("/metrics").text:
            if time.monotonic() > deadline:
                raise SystemExit(f"the topics are not read: see {directory / 'server.log'}")
            time.sleep(0.1)


def _client(directory: Path) -> httpx.Client:
    state = directory / ".eventmill"
    uuid, secret = (state / "key").read_text().strip().split(":")
    return httpx.Client(base_url=(state / "address").read_text().strip(), auth=(uuid, secret))


@contextlib.contextmanager
def _server(directory: Path, config: Path) -> Iterator[tuple[subprocess.Popen[str], Any]]:
    """`eventmill run flow.py` in a process of its own, and a function that returns when it serves."""
    command = [str(Path(sys.executable).with_name("eventmill")), "run", str(HERE / "flow.py"), "--json", "--port", "0"]
    command += ["--config", str(config), "--data-dir", str(directory / ".eventmill")]
    serving = threading.Event()

    def follow(log: Any, stream: Any) -> None:
        with contextlib.suppress(ValueError):  # closed files: we were interrupted while we were ending
            for line in stream:
                log.write(line)
                log.flush()
                if " is served at " in line:
                    serving.set()
        serving.set()

    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with (
        (directory / "server.log").open("w") as log,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
        ) as process,
    ):
        reader = threading.Thread(target=follow, args=(log, process.stderr))
        reader.start()

        def ready() -> None:
            serving.wait()
            if process.poll() is not None:
                raise SystemExit(f"the server did not start: see {directory / 'server.log'}")

        try:
            yield process, ready
        finally:
            process.terminate()
            process.wait(60)
            reader.join()


def _read(process: subprocess.Popen[str], demo: Demo, directory: Path) -> None:
    """Sort in what the server prints; results are asked for by id."""
    assert process.stdout is not None
    client: httpx.Client | None = None
    for text in process.stdout:
        line = json.loads(text)
        if line["kind"] == "activation":
            client = client or _client(directory)
            try:
                line |= client.get(f"/eventmill/v1/activations/{line['activationId']}").json()
            except httpx.HTTPError:
                return  # the server has been ended: nobody waits for more
        demo.take(line)


def _expose(demo: Demo, directory: Path, options: argparse.Namespace) -> None:
    from detector import expose

    for path in expose(directory / "raw", options.runs, options.rate, options.seed):
        at = path.stat().st_mtime  # of its last write, a moment before the close
        demo.closed[f"/detector/raw/{path.name}"] = at if demo.storage is None else demo.storage.tell(path)
    with demo.news:
        demo.total = len(demo.closed)


def _table(demo: Demo) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    for name in ("file", "event", "activation", "after", "frames", "job", "took", "run"):
        table.add_column(name, no_wrap=True)
    table.title = f"the way of every file (after: from its {_beginning(demo)} to the function's first line)"
    for id, line in sorted(demo.inspected.items(), key=lambda item: item[1]["params"].get("subject", "")):
        subject, result = line["params"]["subject"], line["result"]
        row = [
            subject.rsplit("/", 1)[1],
            line["cause"]["id"][:12],
            id[:12],
            f"{_latency_ms(demo, line):.1f} ms",
            str(result.get("frames")),
        ]
        chain = demo.chains.get(id)
        if chain is None:
            row += ["[dim]no[/dim]", "", ""]
        else:
            job = demo.steps.get((chain["activationId"], 0), {})
            took = f"{job['end'] - job['start']} ms" if job.get("end") and job.get("start") else ""
            done = str(chain["result"].get("run", chain["result"].get("error"))) if chain["result"] else ""
            row += [
                str(job.get("handle")).rpartition("#")[2],
                took,
                done if chain["state"] == "succeeded" else f"[red]{done}[/red]",
            ]
        table.add_row(*row)
    return table


def _beginning(demo: Demo) -> str:
    return "close" if demo.storage is None else "record"


def _latency_ms(demo: Demo, line: dict[str, Any]) -> float:
    """From the file's close, or from the sending of its record, to the first line of the function. Both are known to a
    few milliseconds only: the kernel's clock for files ticks every 4 ms, and starts are told in whole ones."""
    return max(0.0, float(line["start"]) - 1000 * demo.closed.get(line["params"]["subject"], 0))


def _summary(console: Console, demo: Demo, directory: Path) -> None:
    latencies = sorted(_latency_ms(demo, line) for line in demo.inspected.values())
    jobs = sum(1 for step in demo.steps.values() if step["category"] == "job")
    activations = len(demo.inspected) + len(demo.chains) + len(demo.steps)
    registered = sum(chain["state"] == "succeeded" for chain in demo.chains.values())
    p50, p99 = latencies[len(latencies) // 2], latencies[int(0.99 * len(latencies))]
    events = len({(line["cause"]["source"], line["cause"]["id"]) for line in demo.inspected.values()})
    console.print(
        f"{len(demo.closed)} files, {events} events, {activations} activations, {jobs} jobs, "
        f"{registered} runs registered, {len(demo.letters)} dead letters\n"
        f"{_beginning(demo)} → first line: p50 {p50:.1f} ms, p99 {p99:.1f} ms"
    )
    for letter in demo.letters:
        console.print(f"[red]dead letter {letter['seq']}[/red]: {letter['reason']}")
    console.print(f"results: {_relative(directory)}/results", soft_wrap=True, highlight=False)
    console.print("  (catalogue.sqlite, a profile and a picture of each run)")


def _history(console: Console, demo: Demo, config: Path) -> None:
    """What HTCondor's own history has of the jobs, for people who do not believe us."""
    pools = {name: pool for name, pool in load(config).pools.items() if pool.kind == "htcondor"}
    for name, pool in pools.items():
        handles = [str(step["handle"]) for step in demo.steps.values()]
        ids = {handle.rpartition("#")[2] for handle in handles if handle.startswith(f"{name}:")}
        if not ids:
            continue
        ended = _ended(pool, {int(id.split(".")[0]) for id in ids})
        hosts = sorted({host.rpartition("@")[2] for id, host in ended.items() if id in ids})
        console.print(f"condor_history has {len(ended.keys() & ids)} of {len(ids)} jobs, run on {', '.join(hosts)}")


def _ended(pool: Pool, clusters: set[int]) -> dict[str, str]:
    """cluster.proc → slot of the jobs of these clusters that have left the queue."""
    if pool.condor_config is not None:
        os.environ["CONDOR_CONFIG"] = str(pool.condor_config)
    import htcondor2

    if pool.schedd or pool.collector:
        collector = htcondor2.Collector(pool.collector or None)
        schedd = htcondor2.Schedd(collector.locate(htcondor2.DaemonType.Schedd, pool.schedd or None))
    else:
        schedd = htcondor2.Schedd()
    constraint = f"ClusterId >= {min(clusters)} && ClusterId <= {max(clusters)} && EventmillActivation =!= undefined"
    ads = schedd.history(constraint, ["ClusterId", "ProcId", "LastRemoteHost"], match=100_000)
    return {f"{ad['ClusterId']}.{ad['ProcId']}": str(ad.get("LastRemoteHost", "")) for ad in ads}


if __name__ == "__main__":
    # what has been started is ended however we are; and a shell gives jobs in its background no Ctrl-C
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)
