"""A node's configuration: one tree, read in one place. File < environment < flags; every field is documented where it is declared.

A TOML file has the fields by name at its top level; the environment has them as ``HOLDFAST_<FIELD>``; flags as ``--<field>``
with dashes. `Config` is checked completely when it is made; a mistake is an Invalid that names the field.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from cluster.errors import Invalid
from cluster.layout.layout import MAX_REPLICATION_FACTOR, NAME_PATTERN
from cluster.repair.settings import RepairSettings
from cluster.volumes.reclaim import RETIRED_GRACE_S
from node.api.auth import check_listen_address
from node.storage.ballast import BALLAST_BYTES
from node.storage.chunk_compaction import COMPACTION_RATE

DEFAULT_API_PORT = 7480
DEFAULT_PEER_PORT = 7482

LEAST_SECRET = 16
"""Characters of a cluster secret: whoever has it can read and write everything."""

ENVIRONMENT_PREFIX = "HOLDFAST_"

REPAIR = RepairSettings()
"""The defaults of repair."""

DEFAULT_SCRUB_PERIOD_S = 14 * 24 * 3600
"""Two weeks: disks lose bits at a rate of months, and three copies must not lose the same chunk before it is looked at."""

DEFAULT_SCRUB_RATE = 20 << 20
"""Reads 25 TB in a period, and leaves nine tenths of a disk to its users."""

DEFAULT_SWEEP_PERIOD_S = 6 * 3600
DEFAULT_SWEEP_AGE_S = 3600
DEFAULT_TOMBSTONE_GRACE_S = 60

LEAST_INTERVAL_S = 0.05
"""What repeats itself at intervals leaves time for something else."""

LONGEST_S = 1 << 31
"""68 years: more is a slip."""

_DECIMAL = re.compile(r"[0-9]{1,12}(\.[0-9]{1,9})?")

_HOST = re.compile(r"(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?")

LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_FORMATS = ("console", "json")


def _setting(doc: str, default: Any = None) -> Any:
    return field(default=default, metadata={"doc": doc})


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings as written, before they are checked. None: not given."""

    data: str | None = _setting("directory of this node's data; required")
    name: str | None = _setting("this node's name in the cluster (default: the host's name)")
    zone: str | None = _setting("nodes of one zone are expected to fail together (default: the node's name)")
    capacity: str | None = _setting("bytes this node offers, or its weight (default: the size of the disk)")
    api: str | None = _setting(f"HOST:PORT of the HTTP API (default 127.0.0.1:{DEFAULT_API_PORT})")
    peer: str | None = _setting(f"HOST:PORT where peers connect (default 127.0.0.1:{DEFAULT_PEER_PORT})")
    advertise: str | None = _setting(
        "HOST[:PORT] under which peers reach this node (default: as --peer, or the host's name)"
    )
    join: str | None = _setting("HOST:PORT of other nodes, separated by commas (flag: repeatable)")
    bootstrap_expect: str | None = _setting(
        "how many nodes form the cluster's first layout together, once all nodes to join have answered (default 0: only join)"
    )
    replication: str | None = _setting("copies of everything, for the first layout (default 3)")
    secret: str | None = _setting(f"the cluster secret, {LEAST_SECRET} or more characters (better: secret_file)")
    secret_file: str | None = _setting("file with the cluster secret")
    auto_layout: str | None = _setting(
        "take nodes that join into the layout without asking: true or false (default false)"
    )
    api_token: str | None = _setting("token that the API asks for (better: api_token_file)")
    api_token_file: str | None = _setting("file with the token that the API asks for")
    allow_anonymous: str | None = _setting(
        "serve the API beyond loopback without a token: true or false (default false)"
    )
    api_hosts: str | None = _setting(
        "names with a dot under which clients may ask an API without a token, separated by commas; *.example.org for all below, * for any "
        "(default: those of --api and --advertise, and the host's name). Web pages could use others to get past a browser"
    )
    chunk_grace_s: str | None = _setting("seconds a chunk without references is kept (default 3600)")
    retired_grace_s: str | None = _setting(
        f"seconds that a replaced or deleted version stays readable for those who are reading it (default {RETIRED_GRACE_S:g})"
    )
    reserve: str | None = _setting(
        "bytes of disk kept free for deletes and repair (default: 1 % of the disk, at least 256 MiB, at most 5 %)"
    )
    require_mount: str | None = _setting(
        "refuse to start while the disk is not mounted: PATH, a mount point that the data directory lies below, or true: the data "
        "directory is a mount point or not on the file system of / (default false)"
    )
    repair_interval_s: str | None = _setting(
        f"seconds between two comparisons with the same peer that found nothing (default {REPAIR.interval_s:g})"
    )
    repair_persist_s: str | None = _setting(
        "a difference between replicas is acted on when a second comparison, so many seconds later, finds it too "
        f"(default {REPAIR.persist_s:g})"
    )
    repair_retry_s: str | None = _setting(
        f"seconds after which a peer that could not be compared with is tried again, doubled each time (default {REPAIR.retry_s:g})"
    )
    repair_rate: str | None = _setting(
        f"most bytes per second that this node fetches to mend its copies, 0 for no limit (default {REPAIR.rate_bytes})"
    )
    down_out_s: str | None = _setting(
        f"a node that is dead for so many seconds is moved out of the layout, 0 for never (default {REPAIR.down_out_s:g})"
    )
    scrub_period_s: str | None = _setting(
        f"within so many seconds everything stored is read and verified (default {DEFAULT_SCRUB_PERIOD_S}: 14 days)"
    )
    scrub_rate: str | None = _setting(
        f"most bytes per second that verifying reads (default {DEFAULT_SCRUB_RATE}: 20 MiB)"
    )
    sweep_period_s: str | None = _setting(
        f"seconds between two searches for what crashed writes have left behind (default {DEFAULT_SWEEP_PERIOD_S}: 6 hours)"
    )
    sweep_age_s: str | None = _setting(
        f"such a search leaves what is younger than so many seconds alone (default {DEFAULT_SWEEP_AGE_S}: 1 hour)"
    )
    tombstone_grace_s: str | None = _setting(
        f"seconds that the mark of something deleted is kept after all replicas have it (default {DEFAULT_TOMBSTONE_GRACE_S})"
    )
    ballast: str | None = _setting(
        f"bytes allocated to a file that is given up for deletes when others have filled the disk (default: half of the reserve, "
        f"at most {BALLAST_BYTES >> 20} MiB)"
    )
    compaction_rate: str | None = _setting(
        f"bytes per second that rewriting of mostly dead log files may write (default {COMPACTION_RATE >> 20} MiB)"
    )
    log_level: str | None = _setting(f"{', '.join(LOG_LEVELS)} (default info)")
    log_format: str | None = _setting(f"{' or '.join(LOG_FORMATS)} (default console)")


@dataclass(frozen=True, slots=True)
class Config:
    """The checked configuration. Sizes in bytes; ``capacity`` 0 is the size of the disk."""

    data: Path
    name: str
    zone: str
    capacity: int
    api_host: str
    api_port: int
    peer_host: str
    peer_port: int
    advertise_host: str
    advertise_port: int
    join: tuple[tuple[str, int], ...]
    bootstrap_expect: int
    replication: int
    secret: str = field(repr=False)
    auto_layout: bool
    api_token: str | None = field(repr=False)
    allow_anonymous: bool
    api_hosts: tuple[str, ...]
    chunk_grace_s: float
    retired_grace_s: float
    reserve: int | None
    require_mount: Path | bool
    repair: RepairSettings
    scrub_period_s: float
    scrub_rate: int
    sweep_period_s: float
    sweep_age_s: float
    tombstone_grace_s: float
    ballast: int | None
    compaction_rate: int
    log_level: str
    log_format: str


def load(arguments: Sequence[str], environment: Mapping[str, str]) -> Config:
    """The configuration of a daemon started so. Raises Invalid; exits as argparse does for ``--help`` and unknown flags."""
    given = vars(_parser().parse_args(arguments))
    if given["join"] is not None:
        given["join"] = ",".join(given["join"])
    from_environment = {
        f.name: environment[ENVIRONMENT_PREFIX + f.name.upper()]
        for f in fields(Settings)
        if environment.get(ENVIRONMENT_PREFIX + f.name.upper())
    }
    file = given.pop("config") or environment.get(f"{ENVIRONMENT_PREFIX}CONFIG")
    layers = [
        _read_file(Path(file)) if file else {},
        from_environment,
        {k: v for k, v in given.items() if v is not None},
    ]
    merged: dict[str, str] = {}
    for layer in layers:
        # A file that is named in one layer takes the place of a value from a layer below, and the other way round.
        for name in ("secret", "api_token"):
            if name in layer or f"{name}_file" in layer:
                merged.pop(name, None)
                merged.pop(f"{name}_file", None)
        merged.update(layer)
    return check(Settings(**merged))


def check(settings: Settings) -> Config:
    """Raises Invalid for the first setting that can't be meant."""
    if not settings.data:
        raise Invalid("no data directory is given: use --data DIR (or HOLDFAST_DATA)", field="data")
    name = settings.name or socket.gethostname().lower()
    _check_name(name, "name")
    zone = settings.zone or name
    _check_name(zone, "zone")
    secret = _secret(settings.secret, settings.secret_file, "secret")
    if secret is None:
        raise Invalid("no cluster secret is given: use --secret-file PATH (or HOLDFAST_SECRET)", field="secret")
    if len(secret) < LEAST_SECRET:
        raise Invalid(f"the cluster secret needs {LEAST_SECRET} or more characters", field="secret")
    token = _secret(settings.api_token, settings.api_token_file, "api_token")
    api_host, api_port = _address(settings.api or f"127.0.0.1:{DEFAULT_API_PORT}", "api")
    peer_host, peer_port = _address(settings.peer or f"127.0.0.1:{DEFAULT_PEER_PORT}", "peer")
    anonymous = _boolean(settings.allow_anonymous, "allow_anonymous")
    check_listen_address(api_host, has_token=token is not None, allow_anonymous=anonymous)
    advertise_host, advertise_port = _advertised(settings.advertise, peer_host, peer_port)
    join = tuple(_address(part.strip(), "join") for part in (settings.join or "").split(",") if part.strip())
    expect = _integer(settings.bootstrap_expect, "bootstrap_expect", 0, 1000, 0)
    if not join and not expect:
        raise Invalid(
            "nothing says which cluster this is: give --join HOST:PORT of a node, or --bootstrap-expect N for a new cluster "
            "(1 for a single node)",
            field="join",
        )
    log_level = settings.log_level or "info"
    if log_level not in LOG_LEVELS:
        raise Invalid(f"log_level is one of {', '.join(LOG_LEVELS)}, not {log_level!r}", field="log_level")
    log_format = settings.log_format or "console"
    if log_format not in LOG_FORMATS:
        raise Invalid(f"log_format is one of {', '.join(LOG_FORMATS)}, not {log_format!r}", field="log_format")
    return Config(
        data=Path(settings.data),
        name=name,
        zone=zone,
        capacity=_integer(settings.capacity, "capacity", 0, 1 << 62, 0),
        api_host=api_host,
        api_port=api_port,
        peer_host=peer_host,
        peer_port=peer_port,
        advertise_host=advertise_host,
        advertise_port=advertise_port,
        join=join,
        bootstrap_expect=expect,
        replication=_integer(settings.replication, "replication", 1, MAX_REPLICATION_FACTOR, 3),
        secret=secret,
        auto_layout=_boolean(settings.auto_layout, "auto_layout"),
        api_token=token,
        allow_anonymous=anonymous,
        api_hosts=_hosts(settings.api_hosts, api_host, advertise_host),
        chunk_grace_s=float(_integer(settings.chunk_grace_s, "chunk_grace_s", 0, 1 << 31, 3600)),
        retired_grace_s=_seconds(settings.retired_grace_s, "retired_grace_s", 0, RETIRED_GRACE_S),
        reserve=None if settings.reserve is None else _integer(settings.reserve, "reserve", 0, 1 << 62, 0),
        require_mount=_mount(settings.require_mount),
        repair=RepairSettings(
            interval_s=_seconds(settings.repair_interval_s, "repair_interval_s", LEAST_INTERVAL_S, REPAIR.interval_s),
            persist_s=_seconds(settings.repair_persist_s, "repair_persist_s", 0, REPAIR.persist_s),
            retry_s=_seconds(settings.repair_retry_s, "repair_retry_s", LEAST_INTERVAL_S, REPAIR.retry_s),
            rate_bytes=_integer(settings.repair_rate, "repair_rate", 0, 1 << 62, REPAIR.rate_bytes),
            down_out_s=_seconds(settings.down_out_s, "down_out_s", 0, REPAIR.down_out_s),
        ),
        scrub_period_s=_seconds(settings.scrub_period_s, "scrub_period_s", LEAST_INTERVAL_S, DEFAULT_SCRUB_PERIOD_S),
        scrub_rate=_integer(settings.scrub_rate, "scrub_rate", 1, 1 << 62, DEFAULT_SCRUB_RATE),
        sweep_period_s=_seconds(settings.sweep_period_s, "sweep_period_s", LEAST_INTERVAL_S, DEFAULT_SWEEP_PERIOD_S),
        sweep_age_s=_seconds(settings.sweep_age_s, "sweep_age_s", 0, DEFAULT_SWEEP_AGE_S),
        tombstone_grace_s=_seconds(settings.tombstone_grace_s, "tombstone_grace_s", 0, DEFAULT_TOMBSTONE_GRACE_S),
        ballast=None if settings.ballast is None else _integer(settings.ballast, "ballast", 0, 1 << 40, 0),
        compaction_rate=_integer(settings.compaction_rate, "compaction_rate", 1 << 16, 1 << 40, COMPACTION_RATE),
        log_level=log_level,
        log_format=log_format,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="holdfastd",
        description="One node of a Holdfast cluster: one daemon on one disk.",
        epilog="Every option can also be set in the --config file (TOML, by its name with underscores) and in the environment "
        "(HOLDFAST_<NAME>); flags win over the environment, the environment over the file. Exit codes: 0 stopped as asked, "
        "2 the configuration, the data directory or an address is wrong or in use, 1 anything else.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="PATH", help="TOML file with settings")
    for setting in fields(Settings):
        flag, doc = f"--{setting.name.replace('_', '-')}", setting.metadata["doc"].replace("%", "%%")
        if setting.name in {"auto_layout", "allow_anonymous"}:
            group = parser.add_mutually_exclusive_group()
            group.add_argument(flag, dest=setting.name, action="store_const", const="true", help=doc)
            group.add_argument(f"--no-{flag[2:]}", dest=setting.name, action="store_const", const="false")
        elif setting.name == "require_mount":
            group = parser.add_mutually_exclusive_group()
            group.add_argument(flag, dest=setting.name, nargs="?", const="true", metavar="PATH", help=doc)
            group.add_argument("--no-require-mount", dest=setting.name, action="store_const", const="false")
        elif setting.name == "join":
            parser.add_argument(flag, dest="join", action="append", metavar="HOST:PORT", help=doc)
        elif setting.name not in {"secret", "api_token"}:
            # Secrets are not taken from the command line, where every user of the machine can read them.
            parser.add_argument(flag, dest=setting.name, metavar=setting.name.upper(), help=doc)
    return parser


def _read_file(path: Path) -> dict[str, str]:
    try:
        document = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise Invalid(f"the configuration {path} can't be read: {error}", field="config") from error
    known = {f.name for f in fields(Settings)}
    if unknown := sorted(set(document) - known):
        raise Invalid(f"the configuration {path} has unknown settings: {', '.join(unknown)}", field=unknown[0])
    return {name: _text(value, name) for name, value in document.items()}


def _text(value: object, name: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ",".join(str(item) for item in value)
    if isinstance(value, str | int | float):
        return str(value)
    raise Invalid(f"{name} can't be a table", field=name)


def _check_name(name: str, what: str) -> None:
    if not NAME_PATTERN.fullmatch(name):
        raise Invalid(
            f"the {what} {name!r} is not one: 1 to 63 of a-z, 0-9, '-' and '.', first and last a letter or digit",
            field=what,
        )


def _secret(value: str | None, file: str | None, name: str) -> str | None:
    if value and file:
        raise Invalid(f"{name} and {name}_file are both given: one of them", field=name)
    if file:
        try:
            value = Path(file).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise Invalid(f"the {name} file {file} can't be read: {error}", field=f"{name}_file") from error
        if not value:
            raise Invalid(f"the {name} file {file} is empty", field=f"{name}_file")
    return value or None


def _address(text: str, name: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or not 0 <= int(port) < 1 << 16 or not host:
        raise Invalid(f"{name} should be HOST:PORT, not {text!r}", field=name)
    return host.strip("[]"), int(port)


def _advertised(text: str | None, peer_host: str, peer_port: int) -> tuple[str, int]:
    if text is None:
        wildcard = peer_host in {"0.0.0.0", "::", "*"}  # noqa: S104 - compared, not bound
        return (socket.gethostname() if wildcard else peer_host), peer_port
    if ":" in text.strip("[]") and not text.endswith("]") and text.rpartition(":")[2].isdecimal():
        return _address(text, "advertise")
    return text.strip("[]"), peer_port


def _hosts(text: str | None, api_host: str, advertise_host: str) -> tuple[str, ...]:
    if text is None:
        return (socket.gethostname(), api_host, advertise_host)
    hosts = tuple(part.strip() for part in text.split(",") if part.strip())
    for host in hosts:
        if host != "*" and not _HOST.fullmatch(host):
            raise Invalid(
                f"api_hosts are names such as n1.example.org or *.example.org, not {host!r}", field="api_hosts"
            )
    return hosts


def _integer(text: str | None, name: str, least: int, most: int, default: int) -> int:
    if text is None:
        return default
    if not text.isdecimal() or not least <= int(text) <= most:
        raise Invalid(f"{name} is a whole number from {least} to {most}, not {text!r}", field=name)
    return int(text)


def _seconds(text: str | None, name: str, least: float, default: float) -> float:
    if text is None:
        return default
    if not _DECIMAL.fullmatch(text) or not least <= float(text) <= LONGEST_S:
        raise Invalid(f"{name} is a number of seconds from {least:g} to {LONGEST_S}, not {text!r}", field=name)
    return float(text)


def _mount(text: str | None) -> Path | bool:
    if text is not None and text.startswith("/"):
        return Path(text)
    try:
        return _boolean(text, "require_mount")
    except Invalid:
        raise Invalid(
            f"require_mount is true, false or the absolute path of a mount point, not {text!r}", field="require_mount"
        ) from None


def _boolean(text: str | None, name: str) -> bool:
    if text is None:
        return False
    if text.lower() in {"true", "yes", "on", "1"}:
        return True
    if text.lower() in {"false", "no", "off", "0"}:
        return False
    raise Invalid(f"{name} is true or false, not {text!r}", field=name)


def from_process(arguments: Sequence[str]) -> Config:
    """`load` with this process's environment."""
    return load(arguments, os.environ)
