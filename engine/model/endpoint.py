"""Where a server (or a file in its place) is, and how to reach it."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass, field, replace
from urllib.parse import parse_qs, quote, unquote, urlsplit

from engine.errors import UsageError
from engine.model import cluster_shard, sentinel_group
from engine.model.cluster_shard import ClusterShard
from engine.model.password_source import PasswordSource
from engine.model.renamed_commands import Names
from engine.model.sentinel_group import SentinelGroup

DEFAULT_PORT = 6379
# RFC 1123 labels; underscores occur in container networks.
_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9_-]{1,63}(?<!-))*\.?")
_ZONE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_PLAIN_SCHEMES = {"redis", "valkey"}
_TLS_SCHEMES = {"rediss", "valkeys"}
_FILE_SCHEME = "rdb:"
_AOF_SCHEME = "aof:"
STDIN_PATH = "/dev/stdin"
"""The path that stands for `rdb:-`."""
# What is written in place of a scheme, or as one, and is none: what it says, and what to write.
_STORES = {"s3", "gs", "gcs", "az", "azure", "http", "https", "ftp", "sftp", "ssh", "scp", "hdfs"}
# file:/path, file:path, and file:///path (or with localhost) of RFC 8089; not `file:6379`, a host.
_FILE_URL = re.compile(r"(?i:file):(?!\d+$)(?://(?:localhost)?(?=/|$))?([^\n]*)")
_FILE_NAME = re.compile(r"(\.{1,2}|~)?/.*|[^@]*\.(rdb|aof)(\.(gz|zst|lz4))?", re.IGNORECASE)
_TLS_OPTIONS = {"ca_file", "cert_file", "key_file", "server_name", "verify"}


@dataclass(frozen=True, slots=True)
class Tls:
    """TLS settings of one endpoint. The server's certificate is verified unless `verify` is off."""

    verify: bool = True
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        for name in ("ca_file", "cert_file", "key_file", "server_name"):
            if "\0" in (getattr(self, name) or ""):
                raise UsageError(f"{name} holds a NUL")
        try:
            named = (self.server_name or "a").encode("idna")
        except UnicodeError:
            named = b""
        if not named or named.startswith(b"."):
            raise UsageError("server_name is not a host name")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One server: host and port, or a unix socket's path; credentials and TLS with it.

    Or the primary that Sentinels watch (`sentinel`): then `host` and `port` are those of the first
    Sentinel, and what dials asks the Sentinels first (`wire.dial.located`).

    Or a cluster by some of its nodes, or the primary of one of its shards (`cluster`): then what
    dials asks the cluster first, and `host` and `port` are the first node's, or where the primary
    was.

    Or, as a source, a file that SAVE wrote (`rdb_path`), or an append-only file or the folder of
    one (`aof_path`), and nothing else has a meaning. The password is never part of `repr`, `str`,
    `address` or `url`.
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    unix_path: str | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: Tls | None = None
    rdb_path: str | None = None
    aof_path: str | None = None
    sentinel: SentinelGroup | None = None
    cluster: ClusterShard | None = None
    from_replica: bool = False
    """Not this server is meant, or the primary of what is watched, but a healthy replica of it
    (`wire.source_replica`); part of no URL."""
    read_only: bool = field(default=False, repr=False, compare=False)
    """A replica in a cluster, where keys are read behind READONLY alone."""
    command_names: Names = field(default=(), repr=False, compare=False)
    """Commands that have another name there (`model.renamed_commands`); part of no URL."""
    connect_command: tuple[str, ...] = field(default=(), repr=False)
    """The words of the command that is the link to it (`model.connect_command`); none: it is
    dialled. Part of no URL."""
    password_source: PasswordSource | None = None
    """Where the password is read with each dial (`wire.login`); then `password` is what was read
    there first, None of a command. Part of no URL."""

    def __post_init__(self) -> None:
        if (path := self.file_path) is not None:
            _check_path(path)
        elif self.unix_path is None:
            places: tuple[tuple[str, int], ...] = ((self.host, self.port),)
            if self.sentinel is not None:
                places = self.sentinel.nodes
            elif self.cluster is not None:
                places += self.cluster.seeds
            for host, port in places:
                check_host(host)
                if not 1 <= port <= 65535:
                    raise UsageError(f"port {port} is not within 1 to 65535")
        elif not self.unix_path.startswith("/"):
            raise UsageError(f"a unix socket needs an absolute path, not {self.unix_path!r}")
        elif "\0" in self.unix_path:
            # The kernel would take it for the end of the path.
            raise UsageError("a unix socket's path holds no NUL")

    @classmethod
    def parse(cls, url: str) -> Endpoint:
        """Read `redis://[user[:password]@]host[:port]` (for a cluster also several nodes of it:
        `host:port,host:port`), `rediss://…?ca_file=…&cert_file=…&
        key_file=…&server_name=…&verify=no` (verify: yes by default), `valkey://`, `valkeys://`,
        `unix:///path`, or a bare `host[:port]`; `redis+sentinel://` and `rediss+sentinel://` (see
        `model.sentinel_group`); or `rdb:PATH` or `aof:PATH`, a file (or folder),
        whose name is taken as it is (a relative one from the working directory on), or `rdb:-`,
        standard input.

        Raises `UsageError`, without repeating the password, for anything else.
        """
        if url.startswith(_FILE_SCHEME):
            return cls(rdb_path=_file(url, _FILE_SCHEME))
        if url.startswith(_AOF_SCHEME):
            return cls(aof_path=_file(url, _AOF_SCHEME))
        if (wrong := _meant(url)) is not None:
            raise wrong
        if "://" not in url:
            url = "redis://" + url
        if (scheme := _scheme(url)).endswith(sentinel_group.SUFFIX):
            return cls._parse_sentinel(url, scheme)
        url, nodes = _first_node(url, scheme)
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise UsageError("the URL's port is not a number within 1 to 65535") from None
        scheme = parts.scheme.lower()
        username = unquote(parts.username) if parts.username else None
        password = unquote(parts.password) if parts.password is not None else None
        options = parse_qs(parts.query, keep_blank_values=True)
        if scheme == "unix":
            if options:
                raise UsageError("a unix:// URL takes no options")
            path = unquote(parts.path)
            return cls(unix_path=path, username=username, password=password)
        if scheme not in _PLAIN_SCHEMES | _TLS_SCHEMES:
            raise UsageError(
                f"{scheme}:// is not a known scheme",
                remedy="Expected redis://, rediss://, valkey://, valkeys://, redis+sentinel://, "
                "unix://, rdb: or aof:.",
            )
        if parts.path.strip("/"):
            raise UsageError(
                "the URL names a database",
                remedy="Every database is moved; use --db to choose some.",
            )
        if parts.fragment:
            raise UsageError("the URL has a fragment", remedy="Write # in a password as %23.")
        tls = _tls(options) if scheme in _TLS_SCHEMES else None
        if options and tls is None:
            raise UsageError("options in a URL need rediss:// or valkeys://")
        if not parts.hostname:
            raise UsageError("the URL names no host")
        return cls(
            host=parts.hostname,
            port=DEFAULT_PORT if port is None else port,
            username=username,
            password=password,
            tls=tls,
            cluster=None if nodes is None else ClusterShard(nodes),
        )

    @classmethod
    def _parse_sentinel(cls, url: str, scheme: str) -> Endpoint:
        kind = scheme.removesuffix(sentinel_group.SUFFIX)
        if kind not in _PLAIN_SCHEMES | _TLS_SCHEMES:
            raise UsageError(
                f"{scheme}:// is not a known scheme",
                remedy="Expected redis+sentinel:// or rediss+sentinel://.",
            )
        rest = url.partition("://")[2]
        if "#" in rest:
            raise UsageError("the URL has a fragment", remedy="Write # in a password as %23.")
        rest, _, query = rest.partition("?")
        place, _, path = rest.partition("/")
        user, _, nodes = place.rpartition("@")
        username, colon, password = user.partition(":")
        given = {
            name: values[-1] for name, values in parse_qs(query, keep_blank_values=True).items()
        }
        found = sentinel_group.parse(nodes, path, given)
        tls = None
        if kind in _TLS_SCHEMES:
            tls = _tls({name: [value] for name, value in given.items()})
        if given and tls is None:
            raise UsageError(
                f"unknown URL option {sorted(given)[0]!r}",
                remedy=f"Known: {', '.join(sentinel_group.OPTIONS)}; with rediss+sentinel:// "
                f"{', '.join(sorted(_TLS_OPTIONS))} too.",
            )
        return cls(
            *found.nodes[0],
            username=unquote(username) or None,
            password=unquote(password) if colon else None,
            tls=tls,
            sentinel=found,
        )

    def at(self, host: str, port: int) -> Endpoint:
        """The data server at this address, reached as the primary that the Sentinels watch, or as
        the cluster's nodes."""
        return replace(
            self,
            host=host,
            port=port,
            unix_path=None,
            sentinel=None,
            cluster=None,
            from_replica=False,
            read_only=False,
        )

    @property
    def of_primary(self) -> Endpoint:
        """The same, and no replica of it."""
        return replace(self, from_replica=False) if self.from_replica else self

    @property
    def looked_up(self) -> bool:
        """Whether servers are asked where it is before each dial: Sentinels, a cluster's nodes, or
        the primary whose replica is meant."""
        return self.from_replica or self.sentinel is not None or self.cluster is not None

    @property
    def sentinels(self) -> list[Endpoint]:
        """Where each Sentinel is, with the Sentinels' own credentials; none of other endpoints."""
        group = self.sentinel
        if group is None:
            return []
        return [
            Endpoint(
                host,
                port,
                username=group.username,
                password=group.password,
                tls=self.tls,
                password_source=group.password_source,
                connect_command=self.connect_command,
            )
            for host, port in group.nodes
        ]

    @property
    def has_password(self) -> bool:
        """Whether a password is given, be it known already or not."""
        return self.password is not None or self.password_source is not None

    @property
    def without_credentials(self) -> Endpoint:
        """The same for those who must not know user and password."""
        return replace(self, username=None, password=None, password_source=None)

    @property
    def file_path(self) -> str | None:
        """The file's (or folder's) path; None: it is a server."""
        return self.rdb_path if self.rdb_path is not None else self.aof_path

    @property
    def address(self) -> str:
        """`host:port`, `[v6]:port`, `unix:/path`, `host:port,…/NAME` of Sentinels,
        `host:port,…` of a cluster by several nodes, `rdb:/path` or `aof:/path`: for people and for
        comparing."""
        if self.rdb_path is not None:
            return f"{_FILE_SCHEME}{'-' if self.rdb_path == STDIN_PATH else self.rdb_path}"
        if self.aof_path is not None:
            return f"{_AOF_SCHEME}{self.aof_path}"
        if self.unix_path is not None:
            return f"unix:{self.unix_path}"
        if self.sentinel is not None:
            return self.sentinel.address
        if self.cluster is not None and not self.cluster.ids:
            return self.cluster.address
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The endpoint as a URL without password (with username and TLS options)."""
        if self.file_path is not None:
            return self.address
        user = f"{quote(self.username, safe='')}@" if self.username else ""
        if self.unix_path is not None:
            return f"unix://{user}{quote(self.unix_path)}"
        kind = "redis" if self.tls is None else "rediss"
        options = []
        if self.sentinel is not None:
            kind += sentinel_group.SUFFIX
            options += self.sentinel.options
        if self.tls is not None:
            options += [
                f"{name}={quote(value, safe='/')}"
                for name in ("ca_file", "cert_file", "key_file", "server_name")
                if (value := getattr(self.tls, name)) is not None
            ]
            if not self.tls.verify:
                options.append("verify=no")
        query = "?" + "&".join(options) if options else ""
        return f"{kind}://{user}{self.address}{query}"

    def with_credentials(
        self,
        username: str | None,
        password: str | None,
        tls: Tls | None = None,
        *,
        password_source: PasswordSource | None = None,
    ) -> Endpoint:
        """The same server with these credentials; its own ones are kept where they are set."""
        return replace(
            self,
            username=self.username if self.username is not None else username,
            password=self.password if self.has_password else password,
            password_source=self.password_source if self.has_password else password_source,
            tls=self.tls if self.tls is not None else tls,
        )

    def __str__(self) -> str:
        return self.address


def _first_node(url: str, scheme: str) -> tuple[str, tuple[tuple[str, int], ...] | None]:
    """A URL that names several nodes of a cluster, with the first one alone, and all of them; None:
    it does not. Raises `UsageError`."""
    head, _, rest = url.partition("://")
    place, *_ = re.split(r"[/?#]", rest, maxsplit=1)
    before, at, nodes = place.rpartition("@")
    if "," not in nodes or scheme not in _PLAIN_SCHEMES | _TLS_SCHEMES:
        return url, None
    found = cluster_shard.read_places(nodes, DEFAULT_PORT)
    first = nodes.partition(",")[0]
    return f"{head}://{before}{at}{first}{rest[len(place) :]}", found


def check_host(host: str) -> None:
    """Raise `UsageError` unless `host` is a DNS name, an IPv4 or an IPv6 address."""
    address, percent, zone = host.partition("%")
    try:
        version = ipaddress.ip_address(address).version
    except ValueError:
        pass
    else:
        # (It may become part of a command's line.)
        if not percent or (version == 6 and _ZONE.fullmatch(zone)):
            return
    numeric = re.fullmatch(r"[0-9.]+", host) is not None
    if len(host) > 253 or numeric or not _HOST_NAME.fullmatch(host):
        shown = repr(host) if len(host) <= 253 else f"{host[:40]!r}…"
        raise UsageError(f"{shown} is neither a host name nor an IP address")


def _file(url: str, kind: str) -> str:
    """The path behind `rdb:` or `aof:` (`kind`), absolute; `rdb:///dump.rdb` is understood too."""
    path = url.removeprefix(kind)
    if path == "-" and kind == _FILE_SCHEME:
        return STDIN_PATH
    scheme = _scheme(path)
    if path == "-" or scheme in _STORES:
        elsewhere = "standard input is not one" if path == "-" else f"{scheme}:// is elsewhere"
        piped = kind == _FILE_SCHEME
        raise UsageError(
            f"{kind} takes a file of this machine, and {elsewhere}",
            remedy="Fetch it first, or send it into the command: … | startmigration migrate "
            "--source rdb:- …"
            if piped
            else "It is read twice: fetch it first.",
        )
    if scheme in _PLAIN_SCHEMES | _TLS_SCHEMES | {"unix"}:
        raise UsageError(
            f"{kind} takes a file, and {scheme}:// is a server",
            remedy=f"Write {scheme}://… for the server, {kind}PATH for a file that it saved.",
        )
    if path.startswith("//") and not path.startswith("///"):
        raise UsageError(
            f"an {kind} URL names no host",
            remedy=f"The file is read where the engine runs: {kind}/PATH, or {kind}PATH.",
        )
    if not path:
        raise UsageError(f"{kind} names no file", remedy=f"Expected {kind}PATH.")
    return os.path.abspath(path.replace("///", "/", 1) if path.startswith("///") else path)


def _scheme(url: str) -> str:
    """What stands before `://`, in lower case; empty if nothing does."""
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", url)
    return "" if found is None else found[1].lower()


def _meant(url: str) -> UsageError | None:
    """What is wrong with a URL that means a file, and what to write; None: it means a server."""
    scheme = _scheme(url)
    if (kind := url[: len(_FILE_SCHEME)]).lower() in (_FILE_SCHEME, _AOF_SCHEME):
        return UsageError(
            f"{kind} is not a known scheme",
            remedy=f"A file is {kind.lower()}PATH, in lower case.",
        )
    if scheme in _STORES:
        return UsageError(
            f"{scheme}:// is not a known scheme",
            remedy="A file is read where the engine runs: fetch it and give rdb:PATH, or send it "
            "into the command: … | startmigration migrate --source rdb:- …",
        )
    if (found := _FILE_URL.fullmatch(url)) is not None:
        path = found[1]
        commands = ".aof" in path.lower() or path.rstrip("/").endswith("appendonlydir")
        kind = _AOF_SCHEME if commands else _FILE_SCHEME
        shown = "PATH" if "@" in path or path.startswith("//") or not path else path
        return UsageError(
            "file: is not a known scheme", remedy=f"A file is rdb:PATH. Write {kind}{shown}."
        )
    if url == "-":
        return UsageError("- is not a source", remedy="The snapshot on standard input is rdb:-.")
    if not scheme and _FILE_NAME.fullmatch(url):
        # (A URL may hold a password; a name with an @ in it is not repeated.)
        shown = "PATH" if "@" in url else url
        commands = ".aof" in url.lower() or url.rstrip("/").endswith("appendonlydir")
        kind, what = (
            (_AOF_SCHEME, "an append-only file") if commands else (_FILE_SCHEME, "a file of SAVE")
        )
        return UsageError(
            "a path without rdb: or aof: names no source",
            remedy=f"Write {kind}{shown} for {what}, unix://PATH for a server's socket.",
        )
    return None


def _check_path(path: str) -> None:
    if not os.path.isabs(path):
        # A worker that is started later, from elsewhere, must find the same file.
        raise UsageError(f"a file needs an absolute path, not {path!r}")
    try:
        known = "\0" not in path and path.encode()
    except UnicodeEncodeError:
        known = b""
    if not known:
        raise UsageError(
            "the file's path is not UTF-8, so it cannot be kept in the state",
            remedy="Give the path of a link to it.",
        )


def _tls(options: dict[str, list[str]]) -> Tls:
    unknown = sorted(set(options) - _TLS_OPTIONS)
    if unknown:
        raise UsageError(
            f"unknown URL option {unknown[0]!r}",
            remedy=f"Known: {', '.join(sorted(_TLS_OPTIONS))}.",
        )
    last = {name: values[-1] for name, values in options.items()}
    verify = last.pop("verify", "yes")
    if verify not in ("yes", "no"):
        raise UsageError(f"verify={verify} in a URL: expected yes or no")
    return Tls(verify=verify == "yes", **{name: value or None for name, value in last.items()})
