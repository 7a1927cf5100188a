"""Settings: one TOML file, every key with unit, default and reason; unknown keys are refused.

Precedence: what a command passes, then environment (`EVENTMILL_SERVER__PORT=…`), then the file, then the defaults.
`eventmill check` prints the effective configuration.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict

from eventmill.errors import InvalidConfig


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Server(_Section):
    data_dir: Path = Path(".eventmill")
    """Store, keys, code cache, jobs. Mode 0700."""
    host: str = "127.0.0.1"
    port: int = Field(default=3233, ge=0, le=65535)
    """0: any free port; the one chosen is written to `data_dir/address`."""
    allowed_hosts: list[str] = ["127.0.0.1", "localhost", "[::1]"]
    """Values of the HTTP `Host` header that are answered (a web page must not reach the server by DNS tricks)."""
    connections_max: PositiveInt = 1000
    """HTTP connections at once; each needs an open file. Further ones are refused (503)."""
    web_credentials: bool = False
    """Web actions see their callers' `Authorization` and `X-Require-Whisk-Auth` in `__ow_headers`, as OpenWhisk's do;
    whoever may read the activation then sees them too."""
    log_format: Literal["text", "json"] = "text"
    drain_timeout_s: NonNegativeFloat = 10.0
    """On shutdown functions under way get this long to finish; what has not is started again by the next server."""


class Pool(_Section):
    kind: Literal["local", "htcondor"] = "local"
    cpus: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1)
    memory_mb: int = Field(default=0, ge=0)
    """local: what jobs may request together; 0: three quarters of this machine's memory."""
    condor_config: Path | None = None
    """htcondor: the configuration file of the access point; without it HTCondor looks for its own."""
    schedd: str = ""
    """htcondor: the name of the schedd; without it the one of this machine."""
    collector: str = ""
    """htcondor: `host[:port]` of the collector that knows the schedd; without it the configuration's."""
    tokens: dict[str, Path] = {}
    """htcondor: files with the IDTOKENs of namespaces: whose jobs belong to whom. Without any, all jobs are the
    server's own account's, and only one namespace may have some."""
    event_log: Path | None = None
    """htcondor: the pool's EVENT_LOG, in JSON; without it each job's log is ours."""
    report_url: str = ""
    """htcondor: where this server is reached from execute nodes, if neither log can be read here: each job then reports
    its own end there. https, or http on this machine alone."""
    history_dir: Path | None = None
    """htcondor: the schedd's PER_JOB_HISTORY_DIR, for this server alone: final states."""
    spool_dir: Path | None = None
    """htcondor: where the jobs' rooms are, instead of in `data_dir`. Needed where HTCondor's daemons act as the jobs'
    owners (root's daemons, `tokens`), who can't get into `data_dir`: the server, which has to be root's then, gives
    each room to its job's owner. Wants `event_log` or `report_url`, since nobody may write others'
    events."""
    defaults: dict[str, str] = {}
    """htcondor: submit commands for all jobs that do not have their own (`requirements`, `+Project`, …)."""
    commands: dict[str, list[str]] = {}
    """htcondor: further submit commands that the jobs of a namespace (`*`: of all) may have."""
    keep_claim_idle_s: NonNegativeInt = 300
    """htcondor: how long a slot waits for the next job of the same kind: then it starts in milliseconds."""

    @model_validator(mode="after")
    def _check(self) -> Pool:
        own = {"kind"} | (
            {"cpus", "memory_mb"} if self.kind == "local" else set(Pool.model_fields) - {"cpus", "memory_mb"}
        )
        if others := self.model_fields_set - own:
            raise ValueError(f"{', '.join(sorted(others))}: not for a pool of kind {self.kind}")
        if self.spool_dir is not None and self.event_log is None and not self.report_url:
            raise ValueError(
                "spool_dir needs event_log or report_url: a log of ours would have to be writable for all jobs' owners"
            )
        if self.report_url and self.event_log is not None:
            raise ValueError("report_url is for pools whose events can't be read: leave out event_log, or report_url")
        if self.report_url and not _is_safe(self.report_url):
            raise ValueError(f"report_url: '{self.report_url}' must be an https URL, without user and query")
        return self


def _is_safe(url: str) -> bool:
    """Whether a token may be sent there: nobody on the way reads it."""
    parts = urlsplit(url)
    on_the_way = parts.scheme == "http" and parts.hostname not in ("127.0.0.1", "localhost", "::1")
    plain = not (parts.query or parts.fragment or "@" in parts.netloc)
    return parts.scheme in ("http", "https") and bool(parts.hostname) and plain and not on_the_way


class PathMap(_Section):
    """One row of `[[paths]]`: the name users know, what the storage system calls it, where this machine opens it."""

    subject: str
    source: str | None = None
    local: str | None = None


class Secret(_Section):
    """Where a secret stands: it is read when it is used, and never printed."""

    env: str | None = None
    """A variable of the server's environment."""
    file: Path | None = None
    """A file that only the server's account reads; a final newline is left out."""

    def __str__(self) -> str:
        return f"environment variable {self.env}" if self.env is not None else str(self.file)

    @model_validator(mode="after")
    def _check(self) -> Secret:
        if (self.env is None) == (self.file is None):
            raise ValueError("a secret is either { env = … } or { file = … }")
        return self

    def read(self) -> str:
        """The secret. Raises InvalidConfig if it isn't there."""
        if self.env is not None:
            if self.env not in os.environ:
                raise InvalidConfig(f"the environment variable {self.env}, where a secret should be, is not set")
            return os.environ[self.env]
        assert self.file is not None
        try:
            return self.file.read_text().rstrip("\n")
        except (OSError, UnicodeDecodeError) as e:
            raise InvalidConfig(f"can't read the secret in {self.file}: {getattr(e, 'strerror', 'not text')}") from e


_AUTHORITY = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?")
_FIELD = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


class HttpFunctions(_Section):
    """Services of others as functions: actions of kind `http`."""

    hosts: list[str] = []
    """`[scheme://]host[:port]` that actions may call: none unless it is here. Without a port, by HTTPS alone; with one,
    by HTTPS and HTTP; with `http://` or `https://`, by that alone."""
    headers: dict[str, dict[str, Secret]] = {}
    """What is sent to a host besides, such as its `Authorization`: by host, as it is in `hosts`. In plain text only
    where that begins with `http://`."""
    namespaces: dict[str, list[str]] = {}
    """Whose actions may call a host, by host, as it is in `hosts`; without it, everybody's: those who may make actions
    here then use its `headers`."""
    ca_file: Path | None = None
    """Certificates of authorities that are trusted instead of the system's."""
    connections_max: PositiveInt = 64
    """Calls that are under way at once."""

    @model_validator(mode="after")
    def _check(self) -> HttpFunctions:
        for host in self.hosts:
            if not re.fullmatch(rf"(?:https?://)?{_AUTHORITY.pattern}", host):
                raise ValueError(
                    f"hosts: '{host}' is not [scheme://]host[:port], as fn.example.org or 10.0.0.5:8080 are"
                )
        for host in self.namespaces:
            if host not in self.hosts:
                raise ValueError(f"namespaces: '{host}' is not in hosts")
        for host, headers in self.headers.items():
            if host not in self.hosts:
                raise ValueError(f"headers: '{host}' is not in hosts")
            for name in headers:
                if not _FIELD.fullmatch(name):
                    raise ValueError(f"headers: '{name}' is no name of an HTTP header")
        return self


class Functions(_Section):
    engine: Literal["pool", "openwhisk"] = "pool"
    workers_max: int = Field(default_factory=lambda: max(8, 4 * (os.cpu_count() or 2)), ge=1)
    """pool: functions that run at once on this server."""
    idle_retire_s: PositiveFloat = 600.0
    """pool: a worker without work for this long is ended."""
    isolation: Literal["auto", "none"] = "auto"
    """pool: auto: own namespaces where the kernel allows it, else only one Eventmill namespace is served; none: as it
    is."""
    preload: list[str] = []
    """pool: modules that every worker starts with (numpy, h5py): loaded once, shared by all."""
    node_modules: Path | None = None
    """pool: a folder with modules that JavaScript functions may require beside their own. OpenWhisk's runtime has
    `openwhisk` there, which compositions want."""
    api_host: str = ""
    """openwhisk: where it is: `https://host[:port]`; `http://` where nobody else can listen."""
    key: Secret | None = None
    """openwhisk: the key (`uuid:key`) of the namespace there that runs all our functions."""
    ca_file: Path | None = None
    """openwhisk: certificates of authorities that are trusted instead of the system's."""
    connections_max: PositiveInt = 64
    """openwhisk: functions that are under way there at once."""
    http: HttpFunctions = HttpFunctions()

    @model_validator(mode="after")
    def _check(self) -> Functions:
        for key, engine in _OF_ENGINES.items():
            default = type(self).model_fields[key].get_default(call_default_factory=True)
            if self.engine != engine and getattr(self, key) != default:
                raise ValueError(f"'{key}' is a setting of engine {engine} alone")
        if self.engine == "openwhisk":
            if not self.api_host:
                raise ValueError('engine openwhisk needs api_host = "https://host[:port]"')
            if not re.fullmatch(rf"https?://{_AUTHORITY.pattern}/?", self.api_host):
                shown = _without_user(self.api_host)
                raise ValueError(f"api_host '{shown}': write https://host[:port], without a path")
            if self.key is None:
                raise ValueError('engine openwhisk needs key = { file = "PATH" } or { env = "NAME" }')
        return self


def _without_user(url: str) -> str:
    """What may be shown of a URL that is refused: somebody may have put a key in."""
    return re.sub(r"[^/]*@", "…@", url)


_OF_ENGINES = {
    **dict.fromkeys(("workers_max", "idle_retire_s", "isolation", "preload", "node_modules"), "pool"),
    **dict.fromkeys(("api_host", "key", "ca_file", "connections_max"), "openwhisk"),
}
"""Settings of functions that only some engines have."""


Property = bool | int | float | str | Secret


def _properties(table: Any) -> Any:
    """What TOML makes of `ssl.ca.location = "…"`, tables in tables, as the names that were meant."""
    return dict(_flat(table, "")) if isinstance(table, dict) else table


def _flat(table: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict) and not value.keys() & {"env", "file"}:
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, bool | int | float | str | Secret) or (isinstance(value, dict) and len(value) == 1):
            yield f"{prefix}{key}", value
        else:
            raise ValueError(f"{prefix}{key} must be a text, a number, true or false, {{ env = … }} or {{ file = … }}")


class Registry(_Section):
    """A Confluent schema registry, for records in its wire format."""

    url: str = ""
    """Without it such records are dead letters."""
    properties: dict[str, Property] = {}
    """Further settings of confluent-kafka's SchemaRegistryClient (`ssl.ca.location`, `basic.auth.user.info`, …)."""

    _flatten = field_validator("properties", mode="before")(_properties)

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        if url and not url.startswith(("http://", "https://")):
            raise ValueError("it must begin with http:// or https://")
        if "@" in url:
            raise ValueError('no password belongs here: set properties."basic.auth.user.info" = { env = … }')
        return url


class Backbone(_Section):
    kind: Literal["embedded", "kafka"] = "embedded"
    brokers: str = "127.0.0.1:9092"
    """Kafka's bootstrap servers, `host:port[,host:port…]`."""
    topic: str = "eventmill.events"
    """Where completions and the events of HTTP, files and schedules go; made if it is missing."""
    group: str = "eventmill"
    """The consumer group: one for all servers of one store, and for nobody else."""
    group_protocol: Literal["classic", "consumer"] = "classic"
    """classic: every broker has it (cooperative rebalancing); consumer: KIP-848, from Kafka 4.0 on."""
    session_timeout_s: PositiveFloat = 10.0
    """A server that is silent this long loses its partitions (with `consumer` the broker's setting counts)."""
    properties: dict[str, Property] = {}
    """librdkafka's own settings (`security.protocol`, `ssl.ca.location`, …); secrets as { env = … } or { file = … }."""
    registry: Registry = Registry()

    _flatten = field_validator("properties", mode="before")(_properties)

    @field_validator("brokers")
    @classmethod
    def _check_brokers(cls, brokers: str) -> str:
        for broker in brokers.split(","):
            if not _AUTHORITY.fullmatch(broker.strip()):
                raise ValueError(f"'{broker}' is not a host and a port (host:9092; several are separated by commas)")
        return brokers


class JsonMap(_Section):
    """How plain JSON becomes an event: where its attributes stand in the record, as names joined by dots."""

    id: str | None = None
    """Text or a whole number. Without it the id is made from source and record: two equal records are one event."""
    type: str = "type"
    subject: str | None = None
    time: str | None = None
    """RFC 3339, or a number: seconds or milliseconds since 1970, whichever makes sense."""
    type_prefix: str = ""
    """Put before the type, so that it is a name of yours (`org.example.`)."""

    @field_validator("id", "type", "subject", "time")
    @classmethod
    def _check_path(cls, path: str | None) -> str | None:
        if path is not None and not all(path.split(".")):
            raise ValueError(f"'{path}' is not names joined by dots")
        return path


class Topic(_Section):
    """One row of `[[topics]]`: records of others, read where they are."""

    name: str | None = None
    regex: str | None = None
    """All topics whose whole name matches (instead of `name`)."""
    decoder: Literal["dcache", "cloudevents", "json"]
    start: str = "latest"
    """For a topic never seen before: `earliest`, `latest`, or a time (RFC 3339)."""
    source: str = ""
    """decoder json: the events' `source`. cloudevents: only events with a source of this prefix are taken."""
    map: JsonMap = JsonMap()
    """decoder json: where id, type, subject and time stand."""
    instance: str = "dcache"
    """decoder dcache: name of the storage system; part of the events' source and ids."""
    personal: Literal["drop", "hash", "keep"] = "drop"
    """decoder dcache: what becomes of user names and addresses."""
    personal_key: Secret | None = None
    """decoder dcache, personal = "hash": without it pseudonyms can be found by trying names."""
    srm: Literal["request", "transfer"] = "request"
    """decoder dcache: which record says that a file sent through SRM is there."""

    @field_validator("regex")
    @classmethod
    def _check_regex(cls, regex: str | None) -> str | None:
        try:
            re.compile(regex or "")
        except re.error as e:
            raise ValueError(f"not a regular expression: {e}") from None
        return regex

    @field_validator("start")
    @classmethod
    def _check_start(cls, start: str) -> str:
        if start not in ("earliest", "latest"):
            try:
                known = datetime.fromisoformat(start).tzinfo is not None
            except ValueError:
                known = False
            if not known:
                raise ValueError("it must be earliest, latest, or a time such as 2026-05-06T07:08:09Z")
        return start

    @model_validator(mode="after")
    def _check(self) -> Topic:
        if (self.name is None) == (self.regex is None):
            raise ValueError("a topic has either a name or a regex")
        if self.decoder == "json" and not self.source:
            raise ValueError("decoder json needs a source, the URI that its events come from")
        for key in self.model_fields_set & _OF_DECODERS.keys():
            if self.decoder not in _OF_DECODERS[key]:
                raise ValueError(f"'{key}' is a setting of decoder {' and '.join(_OF_DECODERS[key])} alone")
        if self.personal_key is not None and self.personal != "hash":
            raise ValueError('personal_key is for pseudonyms: set personal = "hash"')
        return self


_OF_DECODERS = {
    "source": ("cloudevents", "json"),
    "map": ("json",),
    **dict.fromkeys(("instance", "personal", "personal_key", "srm"), ("dcache",)),
}
"""Settings of a topic that only some decoders have."""


class FileSource(_Section):
    path: Path
    """Root of the tree to watch, as this machine sees it."""
    start: Literal["new", "all"] = "new"
    """What was there before the very first start: ignored, or announced."""


class Limits(_Section):
    """Everything that is bounded, in one place; units last in the names."""

    event_bytes: PositiveInt = 1 << 20
    batch_events: PositiveInt = 1000
    """Events in one HTTP batch, and records in one engine transaction."""
    payload_bytes: PositiveInt = 1 << 20
    """Parameters and result of an activation."""
    code_bytes: PositiveInt = 48 << 20
    archive_files: PositiveInt = 10_000
    archive_bytes: PositiveInt = 512 << 20
    """Unpacked size of an archive."""
    function_timeout_ms: PositiveInt = 300_000
    """The longest time limit that an action may ask for."""
    function_memory_mb: PositiveInt = 4096
    job_timeout_ms: PositiveInt = 30 * 86_400_000
    """A job's time limit, unless it asks for less."""
    sequence_components: PositiveInt = 50
    map_elements: PositiveInt = 1_000_000
    pattern_bytes: PositiveInt = 64 << 10
    or_alternatives: PositiveInt = 1000
    """Combinations that the `$or`s of one pattern may stand for."""
    keyless_rules: NonNegativeInt = 200
    keyless_rules_per_namespace: NonNegativeInt = 50
    rules: PositiveInt = 1_000_000
    schedules: PositiveInt = 1000
    """Triggers of a namespace that have a schedule: each may tick every second."""
    depth: NonNegativeInt = 16
    """Completions between the first event and an activation: the loop guard."""
    attempts_event: PositiveInt = 3
    attempts_call: PositiveInt = 1
    retry_first_s: NonNegativeFloat = 1.0
    retry_factor: PositiveFloat = 4.0
    retry_max_s: PositiveFloat = 300.0
    interruptions: PositiveInt = 10
    """A server that dies this often under an activation makes it a dead letter."""
    pending_per_namespace: PositiveInt = 1_000_000
    """Activations that wait or run; beyond it a namespace's matches become dead letters `throttled`."""
    concurrent_invocations: PositiveInt = 1_000_000
    """Unfinished activations of a namespace with which it may call one more action; beyond it: 429. As many as may be
    pending: on a server of one's own, only a namespace that shall leave room for others needs less."""
    invocations_per_minute: PositiveInt = 1_000_000
    """Calls of actions in a minute of the clock, by a namespace (web actions: by anybody, counted for the owner);
    beyond it: 429. More than one server can answer: it is there to be lowered."""
    fires_per_minute: PositiveInt = 1_000_000
    """Triggers fired by hand in a minute of the clock, by a namespace; beyond it: 429. What events cause is never
    counted."""
    window_per_action: PositiveInt = 64
    """Pending activations of one action that are in memory; the rest wait on disk."""
    batch_bytes: PositiveInt = 16 << 20
    """Records of one engine transaction, together."""
    jobs_in_queue: PositiveInt = 1000
    """Jobs of one pool that are handed over at once; the rest wait on disk."""
    disk_free_mb: NonNegativeInt = 200
    """Below it ingress answers 503 and reading pauses."""


class Retention(_Section):
    activations_days: PositiveFloat = 30
    log_days: PositiveFloat = 7
    log_mb: PositiveInt = 10_000
    dead_letters_days: PositiveFloat = 90
    dedup_keep_days: PositiveFloat = 400
    """How long the ledger remembers that an event has been dealt with."""


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="EVENTMILL_",
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    server: Server = Server()
    backbone: Backbone = Backbone()
    topics: list[Topic] = []
    """Topics of others, with `backbone.kind = "kafka"`."""
    functions: Functions = Functions()
    pools: dict[str, Pool] = {"local": Pool()}
    """Batch systems by name; an action's annotation `pool` chooses one, else the first."""
    paths: list[PathMap] = []
    files: list[FileSource] = []
    limits: Limits = Limits()
    retention: Retention = Retention()

    @model_validator(mode="after")
    def _check(self) -> Settings:
        if not self.pools:
            raise ValueError("pools: at least one pool is needed")
        for row in self.paths:
            if not row.subject.startswith("/"):
                raise ValueError(f"paths: subject '{row.subject}' must start with '/'")
        if self.topics and self.backbone.kind != "kafka":
            raise ValueError('topics: they are read from Kafka: set backbone.kind = "kafka"')
        names = [row.name for row in self.topics if row.name is not None]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"topics: '{name}' has two rows")
            if name == self.backbone.topic:
                raise ValueError(f"topics: '{name}' is backbone.topic, which is read without a row here")
        return self


def load(file: Path | None = None, **overrides: Any) -> Settings:
    """Read the configuration.

    `overrides` are sections as dicts (`server={"port": 0}`), merged over the file's. Raises InvalidConfig, which names
    the file, the key and, for an unknown key, the nearest known one.
    """
    table: dict[str, Any] = {}
    if file is not None:
        try:
            table = tomllib.loads(file.read_text())
        except OSError as e:
            raise InvalidConfig(f"can't read configuration {file}: {e.strerror}") from e
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
            raise InvalidConfig(f"{file} is not valid TOML: {e}") from e
    _check_environment()
    for values in (EnvSettingsSource(Settings)(), overrides):
        table = _over(table, values)
    try:
        return Settings(**table)
    except ValidationError as e:
        raise InvalidConfig(f"{file or 'configuration'}: " + "; ".join(_explain(error) for error in e.errors())) from e


def _over(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` over `below`, tables merged."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _over(merged[key], value) if both else value
    return merged


def _check_environment() -> None:
    """A setting in the environment that belongs to no section is a slip."""
    for name in os.environ:
        section = name.removeprefix("EVENTMILL_").partition("__")[0].lower()
        if name.startswith("EVENTMILL_") and "__" in name and section not in Settings.model_fields:
            near = difflib.get_close_matches(section, Settings.model_fields, n=1)
            hint = f"did you mean EVENTMILL_{near[0].upper()}__…?" if near else ", ".join(Settings.model_fields)
            raise InvalidConfig(f"environment variable {name}: there is no section '{section}' ({hint})")


def _explain(error: Any) -> str:
    """One of pydantic's errors in a line: where, what, and what may have been meant."""
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] != "extra_forbidden":
        said = _said(error)
        return f"{where}: {said}" if where else said
    known = _keys_beside(error["loc"])
    near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
    return f"{where}: unknown key" + (f" (did you mean '{near[0]}'?)" if near else f" (known here: {', '.join(known)})")


def _said(error: Any) -> str:
    """In our words where pydantic's are about its own types."""
    name = str(error["loc"][-1]) if error["loc"] else ""
    if error["type"] == "model_type" and error["ctx"]["class_name"] == Secret.__name__:
        key = name if re.fullmatch(r"[\w-]+", name) else f'"{name}"'
        return f'write {key} = {{ file = "PATH" }} or {{ env = "NAME" }}: secrets don\'t stand in the configuration'
    if error["type"] == "list_type" and name in ("files", "paths", "topics"):
        return f"write [[{name}]], once for each"
    return str(error["msg"]).removeprefix("Value error, ")


def _keys_beside(loc: tuple[Any, ...]) -> list[str]:
    """The keys that are known where `loc` points to an unknown one."""
    model: type[BaseModel] = Settings
    for part in loc[:-1]:
        field = model.model_fields.get(str(part))
        kinds = () if field is None else (field.annotation, *get_args(field.annotation))
        model = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), model)
    return sorted(model.model_fields)
