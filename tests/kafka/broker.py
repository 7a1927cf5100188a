"""Apache Kafka brokers on loopback, as processes that tests start, stop, kill and freeze.

A broker is its own controller (KRaft), or one of three. Its ports are its own from the constructor to `close`, whatever
happens to the process: a socket is bound to each and never listens, which keeps everybody else away, but not the
broker, whose sockets are bound with SO_REUSEADDR, too. The process can't outlive this one, even if this one is killed.

Calls for one broker come from one thread at a time.
"""

from __future__ import annotations

import base64
import os
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from confluent_kafka import KafkaException

from tests.kafka.certificates import Certificates, certificates
from tests.kafka.jars import KafkaTrouble, jars, program
from tests.kafka.topics import STEP_S, Topics

START_TIMEOUT_S = 90
STOP_TIMEOUT_S = 60
HEAP_MB = 512

USER, PASSWORD = "mill", "grind-no-secret"
"""Who is let in by the SASL listener, by SCRAM and by PLAIN."""

DEFAULTS = {
    "process.roles": "broker,controller",
    "controller.listener.names": "CONTROLLER",
    "auto.create.topics.enable": "false",
    "offsets.topic.num.partitions": "1",
    "transaction.state.log.num.partitions": "1",
    # tests want to see failures in seconds
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    "group.consumer.min.session.timeout.ms": "1000",
    "group.consumer.session.timeout.ms": "3000",
    "group.consumer.min.heartbeat.interval.ms": "100",
    "group.consumer.heartbeat.interval.ms": "500",
    # after a kill the old registration must lapse before the broker is let in again
    "broker.session.timeout.ms": "2000",
    "broker.heartbeat.interval.ms": "400",
    # 128 MB by default, for compacted topics
    "log.cleaner.dedupe.buffer.size": "4194304",
}

LOGGING = """\
Configuration:
  Appenders:
    Console: {name: STDOUT, PatternLayout: {pattern: "%d %p %m (%c)%n"}}
  Loggers:
    Root: {level: WARN, AppenderRef: [{ref: STDOUT}]}
"""

TETHERED = ["setpriv", "--pdeathsig", "KILL", "sh", "-c", '[ "$PPID" = "$1" ] || exit 1; shift; exec "$@"', "sh"]
"""In front of a command: it is killed when its parent, whose number follows, dies, or has died already."""

_starter = ThreadPoolExecutor(1, thread_name_prefix="kafka")
"""Starts all brokers: the kernel takes the end of the *thread* that started a process for its parent's death."""


class Broker(Topics):
    """One broker. `start` it as often as you like; it keeps its ports and its data directory until it is closed.

    As a context manager it is started and closed. `tls` and `sasl` are librdkafka's settings for a client of the other
    two listeners (SASL over TLS: SCRAM-SHA-512, SCRAM-SHA-256, PLAIN, OAUTHBEARER), if it was made `secure`.
    """

    def __init__(
        self,
        directory: Path | None = None,
        *,
        port: int = 0,
        properties: Mapping[str, str] | None = None,
        secure: bool = False,
        node: int = 1,
    ) -> None:
        """`directory`: what is in it is used, else it is made and stays; None: one that goes with `close`. `port`: of
        the listener without TLS, 0 for any. `properties`: the broker's own, over ours."""
        self._temporary = tempfile.TemporaryDirectory(prefix="eventmill-kafka-") if directory is None else None
        self.directory = Path(self._temporary.name) if self._temporary else Path(os.path.abspath(directory or ""))
        self.node = node
        self.properties = dict(properties or {})
        self.quorum: Sequence[Broker] = (self,)
        self.cluster_id = _new_cluster_id()
        self.process: subprocess.Popen[bytes] | None = None
        self._reserved: dict[str, socket.socket] = {}
        listeners = {"PLAINTEXT": port, "CONTROLLER": 0, **({"SSL": 0, "SASL_SSL": 0} if secure else {})}
        for name, wanted in listeners.items():
            self._reserved[name] = _reserve(wanted)
        self.certificates: Certificates | None = certificates(self.directory / "tls") if secure else None

    # Where it is.

    @property
    def bootstrap(self) -> str:
        return self.address("PLAINTEXT")

    @property
    def tls(self) -> dict[str, str]:
        assert self.certificates is not None, "made without `secure`"
        return {
            "bootstrap.servers": self.address("SSL"),
            "security.protocol": "SSL",
            "ssl.ca.location": str(self.certificates.authority),
        }

    @property
    def sasl(self) -> dict[str, str]:
        return self.tls | {
            "bootstrap.servers": self.address("SASL_SSL"),
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": "SCRAM-SHA-512",
            "sasl.username": USER,
            "sasl.password": PASSWORD,
        }

    @property
    def log(self) -> Path:
        """What the broker has printed."""
        return self.directory / "kafka.log"

    def address(self, listener: str) -> str:
        """`host:port` of PLAINTEXT, CONTROLLER, SSL or SASL_SSL."""
        host, port = self._reserved[listener].getsockname()
        return f"{host}:{port}"

    # Its life.

    def start(self) -> None:
        """Start it and wait until it is ready. Raises KafkaTrouble with the end of its log if it doesn't come up."""
        self.launch()
        self.wait()

    def launch(self) -> None:
        """Start it, and don't wait."""
        if self.running:
            raise KafkaTrouble("this broker is running already")
        self._prepare()
        with self.log.open("ab") as log:
            command = [*TETHERED, str(os.getpid()), *self._java(HEAP_MB), "kafka.Kafka", str(self._properties_file)]
            self.process = _starter.submit(
                subprocess.Popen, command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            ).result()

    def wait(self) -> None:
        """Until it says of itself that it is in the cluster: its port answers before that."""
        admin = self.admin()
        end = time.monotonic() + START_TIMEOUT_S
        while True:
            if not self.running:
                raise KafkaTrouble(f"Kafka has ended while it started.\n{self._log_end()}")
            try:
                if self.node in admin.list_topics(timeout=1).brokers:
                    return
            except KafkaException:
                pass
            if time.monotonic() > end:
                raise KafkaTrouble(f"Kafka is not ready after {START_TIMEOUT_S} s.\n{self._log_end()}")
            time.sleep(STEP_S)

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def join(self) -> None:
        """Wait for its end, whatever brings it. Raises KafkaTrouble if it was an error."""
        if self.process is not None and self.process.wait() != 0:
            raise KafkaTrouble(f"Kafka has ended with {self.process.returncode}.\n{self._log_end()}")

    def stop(self) -> None:
        """End it in good order, if it runs."""
        if self.process is not None:
            self.resume()
            self.process.terminate()
            try:
                self.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.kill()
                raise KafkaTrouble(
                    f"Kafka had to be killed, {STOP_TIMEOUT_S} s after TERM.\n{self._log_end()}"
                ) from None

    def kill(self) -> None:
        """End it between any two instructions, if it runs."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def pause(self) -> None:
        """Freeze it: connections stay, nothing answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after a `pause`."""
        self._signal(signal.SIGCONT)

    def restart(self) -> None:
        """`stop` and `start`."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Kill it and give back ports and directory: the end of this object."""
        self.kill()
        for reserved in self._reserved.values():
            reserved.close()
        if self._temporary is not None:
            self._temporary.cleanup()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _signal(self, number: int) -> None:
        if self.process is not None:
            self.process.send_signal(number)

    # What it is started with.

    @property
    def _properties_file(self) -> Path:
        return self.directory / "server.properties"

    def _prepare(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / "log4j2.yaml").write_text(LOGGING)
        lines = [f"{key}={value}\n" for key, value in self._all_properties().items()]
        self._properties_file.write_text("".join(lines).replace("\\", "\\\\"))
        if not (self.directory / "data" / "meta.properties").exists():
            self._format()

    def _format(self) -> None:
        command = [*self._java(128), "kafka.tools.StorageTool", "format", "-t", self.quorum[0].cluster_id]
        command += ["-c", str(self._properties_file)]
        if self.certificates is not None:
            for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512"):
                command += ["--add-scram", f"{mechanism}=[name={USER},password={PASSWORD}]"]
        ran = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if ran.returncode != 0:
            raise KafkaTrouble(f"Kafka's data directory can't be formatted:\n{ran.stdout}{ran.stderr}")

    def _java(self, heap_mb: int) -> list[str]:
        java = program("java", "default-jre-headless")
        logging = f"-Dlog4j2.configurationFile={self.directory / 'log4j2.yaml'}"
        # what makes a short life fast: no optimising compiler, no threads of a collector
        flags = [f"-Xmx{heap_mb}m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-XX:+ExitOnOutOfMemoryError"]
        return [java, "-cp", f"{jars()}/*", logging, *flags]

    def _all_properties(self) -> dict[str, str]:
        listeners = ",".join(f"{name}://{self.address(name)}" for name in self._reserved)
        public = ",".join(f"{name}://{self.address(name)}" for name in self._reserved if name != "CONTROLLER")
        replicas, enough = str(len(self.quorum)), str(len(self.quorum) // 2 + 1)
        return {
            **DEFAULTS,
            "node.id": str(self.node),
            "controller.quorum.voters": ",".join(f"{b.node}@{b.address('CONTROLLER')}" for b in self.quorum),
            "listeners": listeners,
            "advertised.listeners": public,
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SSL:SSL,SASL_SSL:SASL_SSL",
            "log.dirs": str(self.directory / "data"),
            "default.replication.factor": replicas,
            "offsets.topic.replication.factor": replicas,
            "transaction.state.log.replication.factor": replicas,
            "min.insync.replicas": enough,
            "transaction.state.log.min.isr": enough,
            **(_security(self.certificates) if self.certificates is not None else {}),
            **self.properties,
        }

    def _log_end(self) -> str:
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return f"The end of {self.log}:\n{text[-3000:]}"


class Cluster(Topics):
    """Three brokers in one quorum; topics have three replicas, of which two must have a record before it counts.

    Each broker can be stopped or killed on its own. All of them end by `close`, killed: the last one of a quorum waits
    for the others before it ends in good order.
    """

    def __init__(self, directory: Path | None = None, *, properties: Mapping[str, str] | None = None) -> None:
        self.brokers = tuple(
            Broker(directory / f"broker-{node}" if directory else None, properties=properties, node=node)
            for node in (1, 2, 3)
        )
        for broker in self.brokers:
            broker.quorum = self.brokers

    @property
    def bootstrap(self) -> str:
        return ",".join(broker.bootstrap for broker in self.brokers)

    def start(self) -> None:
        """Start those that don't run, and wait until all are ready."""
        for broker in self.brokers:
            if not broker.running:
                broker.launch()
        for broker in self.brokers:
            broker.wait()

    def leader(self, topic: str, partition: int = 0) -> Broker:
        """Who leads a partition now."""
        node = self.admin().list_topics(timeout=10).topics[topic].partitions[partition].leader
        return self.brokers[node - 1]

    def close(self) -> None:
        """Kill all and give back ports and directories."""
        for broker in self.brokers:
            broker.close()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _new_cluster_id() -> str:
    """A random id, as Kafka writes them; with a zero at its front it can't begin with a dash, like an option."""
    return base64.urlsafe_b64encode(bytes(1) + uuid.uuid4().bytes[1:]).decode().rstrip("=")


def _reserve(port: int) -> socket.socket:
    reserved = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        reserved.bind(("127.0.0.1", port))
    except OSError as error:
        reserved.close()
        raise KafkaTrouble(f"port {port} can't be had ({error.strerror}): choose another, or 0 for any") from None
    return reserved


def _security(made: Certificates) -> dict[str, str]:
    """The broker's side of TLS and SASL. OAUTHBEARER takes tokens that nobody has signed: for tests alone."""
    modules = "org.apache.kafka.common.security"
    logins = {
        "scram-sha-256": f"{modules}.scram.ScramLoginModule required;",
        "scram-sha-512": f"{modules}.scram.ScramLoginModule required;",
        "plain": f'{modules}.plain.PlainLoginModule required user_{USER}="{PASSWORD}";',
        "oauthbearer": f'{modules}.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="{USER}";',
    }
    return {
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(made.server),
        "sasl.enabled.mechanisms": ",".join(logins).upper(),
        **{f"listener.name.sasl_ssl.{name}.sasl.jaas.config": login for name, login in logins.items()},
    }
