"""Credentials by host: from the environment or a configuration file, never from the API's requests.

The configuration (TOML) holds a list; the first entry that fits a server gives what the server's
URL did not say itself:

    [[credentials]]
    host = "*.prod.example.com"     # fnmatch; also "host:6380", "[fd00:*]:6379", "/run/*.sock"
                                    # Without a port: 6379 alone. "host:*" is every port.
                                    # "10.*" is for addresses alone, and for no name.
    username = "migration"
    password_file = "/run/secrets/redis"        # or password_command, password, password_env
    tls = true                                  # ca_file, cert_file, key_file, server_name, verify

A file and a command (`password_command = ["pass", "show", "cache"]`) are read anew whenever a
server is dialled.

`iam = "elasticache/REGION/REPLICATION-GROUP"` (or `memorydb/REGION/CLUSTER`) signs the tokens that
AWS takes in a password's place.

An entry for Sentinels is found by their address ("sentinel-*:26379"). One for the servers behind
them has the same host, and says which primary is meant: what Sentinels elsewhere call by that name
is told nothing.

    host = "sentinel-*:26379"
    sentinel = "main"
    password_file = "/run/secrets/main"

STARTMIGRATION_CREDENTIALS holds the same entries as a JSON list, and is looked at first.
"""

from __future__ import annotations

import ipaddress
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path
from typing import Any

from engine.errors import UsageError
from engine.model import credential_host_pattern, host_pattern_check, socket_path_pattern
from engine.model.endpoint import DEFAULT_PORT, Endpoint, Tls
from engine.model.password_source import (
    IamToken,
    PasswordCommand,
    PasswordFile,
    PasswordSource,
    path_problem,
)
from engine.model.sentinel_group import SentinelGroup, node_address

CONFIG_VARIABLE = "STARTMIGRATION_CONFIG"
CREDENTIALS_VARIABLE = "STARTMIGRATION_CREDENTIALS"
_SECRET_SOURCES = ("password", "password_file", "password_command", "password_env", "iam")
_TLS_FILES = ("ca_file", "cert_file", "key_file")
_FILES = ("password_file", *_TLS_FILES)
_TLS_ONLY = ("ca_file", "cert_file", "key_file", "verify", "server_name")
_FLAGS = ("tls", "verify")


@dataclass(frozen=True, slots=True)
class Credential:
    """One entry: which servers it is for (`host`), and what it gives them."""

    host: str
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    password_file: str | None = None
    password_command: tuple[str, ...] | None = field(default=None, repr=False)
    password_env: str | None = None
    iam: str | None = None
    """Whose IAM token is the password (`model.password_source.IamToken`)."""
    tls: bool | None = None
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    verify: bool | None = None
    server_name: str | None = None
    sentinel: str | None = None
    """The entry is for the servers that hold the data of this name, which Sentinels at `host`
    watch."""

    @classmethod
    def read(cls, data: object, where: str) -> Credential:
        """Check one entry of a configuration; `where` names it in errors.

        Raises `UsageError`, which names the key and never repeats a value.
        """
        if not isinstance(data, Mapping):
            raise UsageError(f"{where} is not a table of credentials")
        known = [f.name for f in fields(cls)]
        data = dict(data)
        for name, value in data.items():
            if name not in known:
                raise UsageError(f"{where}: unknown key {name!r}", remedy=_known(known))
            if name == "password_command":
                try:
                    data[name] = PasswordCommand.parse(value).words
                except ValueError as error:
                    raise UsageError(f"{where}: {name} {error}") from None
                continue
            kind = bool if name in _FLAGS else str
            if not isinstance(value, kind):
                expected = "true or false" if kind is bool else "a string"
                raise UsageError(f"{where}: {name} is not {expected}")
            if isinstance(value, str):
                _check_text(value, name, where)
        if not data.get("host"):
            raise UsageError(f"{where}: host is missing")
        host = credential_host_pattern.read(data["host"], where)
        given = [name for name in _SECRET_SOURCES if name in data]
        if len(given) > 1:
            raise UsageError(f"{where}: {' and '.join(given)} exclude each other")
        if "iam" in data:
            if not data.get("username"):
                raise UsageError(
                    f"{where}: iam needs a username", remedy="An IAM user of AWS has the same name."
                )
            try:
                IamToken.parse(data["iam"], data["username"])
            except UsageError as error:
                raise UsageError(f"{where}: {error.message}", remedy=error.remedy) from None
        if data.get("tls") is False:
            for name in _TLS_ONLY:
                if name in data:
                    raise UsageError(f"{where}: {name} cannot be given together with tls = false")
        return cls(**{**data, "host": host})

    @property
    def has_password(self) -> bool:
        """Whether the entry names a password, be it readable or not."""
        return any(getattr(self, name) is not None for name in _SECRET_SOURCES)

    def fits(self, endpoint: Endpoint) -> bool:
        """Whether the entry is for this server, and for its user when the URL names one.

        An entry without a port is for 6379 alone: what else listens on that host is another
        program, which must not be told the password.
        """
        group = endpoint.sentinel
        if group is not None:
            ours = replace(self, sentinel=None, username=None)
            return self.sentinel == group.name and any(map(ours.fits, endpoint.sentinels))
        if self.sentinel is not None or not self._fits_but_for_port(endpoint):
            return False
        if endpoint.unix_path is not None:
            return True
        _, port = credential_host_pattern.split(self.host)
        return fnmatchcase(str(endpoint.port), str(DEFAULT_PORT) if port is None else port)

    def _fits_but_for_port(self, endpoint: Endpoint) -> bool:
        if endpoint.username is not None and self.username not in (None, endpoint.username):
            return False
        if endpoint.unix_path is not None:
            return self.host == "*" or (
                self.host.startswith("/")
                and socket_path_pattern.fits(os.path.realpath(endpoint.unix_path), self.host)
            )
        host, _ = credential_host_pattern.split(self.host)
        named = _canonical(endpoint.host)
        if (
            host_pattern_check.wild(host)
            and host_pattern_check.of_addresses(host)
            and not _is_address(named)
        ):
            return False  # "10.*" means addresses: any server can have the name 10.example.com
        return fnmatchcase(named, _canonical(host))

    def secret(self) -> str | None:
        """The password as it is now; None if the entry has none, or if a command or AWS gives it.
        Raises `UsageError` if it cannot be read."""
        if self.password_env is not None:
            if self.password_env not in os.environ:
                raise UsageError(
                    f"the password for {self.host} is expected in the environment variable "
                    f"{self.password_env}, which is not set"
                )
            return os.environ[self.password_env]
        if self.password_file is not None:
            return PasswordFile(self.password_file).read()
        return self.password

    @property
    def source(self) -> PasswordSource | None:
        """Where the password is read anew with each dial; None: it stays as it is."""
        if self.password_command is not None:
            return PasswordCommand(self.password_command)
        if self.iam is not None:
            return IamToken.parse(self.iam, self.username or "")
        if self.password_file is not None and (file := PasswordFile(self.password_file)).lasts:
            return file
        return None

    def tls_for(self, own: Tls | None) -> Tls | None:
        """The TLS settings of a server whose URL gave `own`: its own ones first."""
        # AWS takes tokens over TLS alone.
        by_default = self.iam is not None and self.tls is None
        wanted = (
            by_default or self.tls or any(getattr(self, name) is not None for name in _TLS_ONLY)
        )
        if own is None and not wanted:
            return None
        own = own or Tls()
        return Tls(
            verify=own.verify and self.verify is not False,
            ca_file=own.ca_file or self.ca_file,
            cert_file=own.cert_file or self.cert_file,
            key_file=own.key_file or self.key_file,
            server_name=own.server_name or self.server_name,
        )


@dataclass(frozen=True, slots=True)
class Credentials:
    """Entries in the order in which they are tried."""

    entries: tuple[Credential, ...] = ()

    @classmethod
    def load(cls) -> Credentials:
        """Read STARTMIGRATION_CREDENTIALS, then the configuration file
        (STARTMIGRATION_CONFIG, else $XDG_CONFIG_HOME/startmigration/config.toml if there is one).

        Raises `UsageError` for a file that is missing though named, is malformed, has an unknown
        key, or holds a password and can be read by others.
        """
        return cls(_from_environment() + _from_file())

    @classmethod
    def read(cls, items: object, where: str) -> Credentials:
        """Check a list of entries as they stand in a configuration. Raises `UsageError`."""
        if not isinstance(items, list):
            raise UsageError(
                f"{where}: `credentials` must be a list of tables, [[credentials]] in TOML"
            )
        named = ((f"{where}: credentials entry {n}", item) for n, item in enumerate(items, 1))
        return cls(tuple(Credential.read(item, name) for name, item in named))

    def find(self, endpoint: Endpoint) -> Credential | None:
        """The first entry that fits `endpoint`; a file has none."""
        if endpoint.file_path is not None:
            return None
        return next((entry for entry in self.entries if entry.fits(endpoint)), None)

    def other_port(self, endpoint: Endpoint) -> str | None:
        """The `host` of an entry that is for this server but for its port, where none is for the
        server itself."""
        if endpoint.file_path is not None or endpoint.sentinel is not None:
            return None
        if self.find(endpoint) is not None:
            return None
        near = (entry.host for entry in self.entries if entry._fits_but_for_port(endpoint))
        return next(near, None)

    def apply(self, endpoint: Endpoint) -> Endpoint:
        """`endpoint` with what the first fitting entry adds; what its URL said is kept.

        Raises `UsageError` if the entry's password cannot be read.
        """
        if endpoint.sentinel is not None:
            endpoint = self._apply_to_sentinels(endpoint, endpoint.sentinel)
        entry = self.find(endpoint)
        if entry is None:
            return endpoint
        filled = endpoint
        if not endpoint.has_password:
            # A user name without a password stays: some servers authenticate by certificate.
            filled = endpoint.with_credentials(
                entry.username, entry.secret(), password_source=entry.source
            )
        if endpoint.unix_path is not None:
            return filled
        return replace(filled, tls=entry.tls_for(endpoint.tls))

    def _apply_to_sentinels(self, endpoint: Endpoint, group: SentinelGroup) -> Endpoint:
        """`endpoint` with the Sentinels' own user and password, by the first of them that an entry
        with a password fits."""
        if group.has_password:
            return endpoint
        for each in endpoint.sentinels:
            entry = self.find(each)
            if entry is not None and entry.has_password:
                own = replace(
                    group,
                    username=group.username if group.username is not None else entry.username,
                    password=entry.secret(),
                    password_source=entry.source,
                )
                return replace(endpoint, sentinel=own)
        return endpoint

    def and_of(self, endpoint: Endpoint) -> Credentials:
        """These, and before them what the endpoint's own URL said of user and password."""
        group = endpoint.sentinel
        if group is not None:
            named = []
            for node in (node_address(*each) for each in group.nodes):
                host = node if node.startswith("[") else escape(node)
                if group.password is not None and group.password_source is None:
                    theirs = Credential(host, username=group.username, password=group.password)
                    named.append(theirs)
                if endpoint.password is not None and endpoint.password_source is None:
                    data = Credential(host, endpoint.username, endpoint.password)
                    named.append(replace(data, sentinel=group.name))
            return replace(self, entries=(*named, *self.entries))
        if endpoint.password is None or endpoint.password_source is not None:
            return self
        hosts = [endpoint.unix_path or node_address(endpoint.host, endpoint.port)]
        if endpoint.cluster is not None:
            hosts += (node_address(*each) for each in endpoint.cluster.seeds)
        # A host in brackets is an address (IPv6), anything else is matched as a pattern.
        own = [
            Credential(
                host if host.startswith("[") else escape(host),
                username=endpoint.username,
                password=endpoint.password,
            )
            for host in dict.fromkeys(hosts)
        ]
        return replace(self, entries=(*own, *self.entries))

    def beside(self, endpoint: Endpoint, address: str) -> Endpoint:
        """The server at `address` (`host:port`), which belongs to one replication with `endpoint`:
        reached with what the first fitting entry gives, and else as `endpoint` is.

        A loopback address was told by the server at `endpoint`: it means that server's machine.
        Raises `UsageError` for what is no address, or if the entry's password cannot be read.
        """
        host, _, port = address.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not port.isdigit():
            raise UsageError(
                f"a server of the replication is at {address!r}, which is not HOST:PORT"
            )
        if endpoint.unix_path is None and _is_loopback(host):
            host = endpoint.host
        if endpoint.looked_up and endpoint.has_password:
            # As the primary is reached that the Sentinels, or the cluster's nodes, name.
            return endpoint.at(host, int(port))
        found = Endpoint(
            host=host,
            port=int(port),
            command_names=endpoint.command_names,
            connect_command=endpoint.connect_command,
        )
        filled = self.apply(found)
        if not filled.has_password:
            filled = filled.with_credentials(
                endpoint.username, endpoint.password, password_source=endpoint.password_source
            )
        entry = self.find(filled)
        if entry is not None and entry.tls is False:
            return filled
        return replace(filled, tls=filled.tls or endpoint.tls)

    def unreadable(self) -> list[str]:
        """Of each password (or command), certificate and key of the entries that cannot be read
        now: why. It may be put there later."""
        problems = []
        for entry in self.entries:
            try:
                entry.secret()
            except UsageError as error:
                problems.append(error.message)
            command = entry.password_command
            if command is not None and shutil.which(command[0]) is None:
                problems.append(
                    f"{PasswordCommand(command).name} for {entry.host} cannot be run: there is no "
                    "such program"
                )
            for name in _TLS_FILES:
                path = getattr(entry, name)
                if path is not None and (reason := _unread(path)) is not None:
                    problems.append(f"the {name} {path} for {entry.host} cannot be read: {reason}")
        return problems

    def to_json(self) -> str:
        """The entries in the form of STARTMIGRATION_CREDENTIALS. Holds secrets: for a child's
        environment alone."""
        rows = [asdict(entry) for entry in self.entries]
        return json.dumps([{k: v for k, v in row.items() if v is not None} for row in rows])


def config_path() -> tuple[Path, bool]:
    """Where the configuration file is, and whether it was named (then it has to exist).

    Raises `UsageError` for a path that begins with a `~` without a home directory.
    """
    named = os.environ.get(CONFIG_VARIABLE)
    base = named or os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    if (problem := path_problem(base)) is not None:
        variable = CONFIG_VARIABLE if named else "XDG_CONFIG_HOME"
        raise UsageError(f"{variable}: {base!r} {problem}")
    path = Path(base).expanduser()
    return (path, True) if named else (path / "startmigration" / "config.toml", False)


def _from_environment() -> tuple[Credential, ...]:
    text = os.environ.get(CREDENTIALS_VARIABLE)
    if not text:
        return ()
    try:
        items = json.loads(text)
    except json.JSONDecodeError as error:
        # Not chained: the parser's error carries the whole text, passwords too.
        raise UsageError(
            f"{CREDENTIALS_VARIABLE} is not JSON: {error.msg} at line {error.lineno}, "
            f"column {error.colno}"
        ) from None
    return Credentials.read(items, CREDENTIALS_VARIABLE).entries


def _from_file() -> tuple[Credential, ...]:
    path, named = config_path()
    try:
        with path.open("rb") as file:
            import tomllib

            mode = os.fstat(file.fileno()).st_mode
            data = tomllib.load(file)
    except FileNotFoundError:
        if named:
            raise UsageError(f"{CONFIG_VARIABLE} names {path}, which does not exist") from None
        return ()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        reason = str(error) if isinstance(error, tomllib.TOMLDecodeError) else "not UTF-8 text"
        raise UsageError(f"{path} is not TOML: {reason}") from None
    for name in data:
        if name != "credentials":
            raise UsageError(f"{path}: unknown key {name!r}", remedy=_known(["credentials"]))
    entries = Credentials.read(data.get("credentials", []), str(path)).entries
    if mode & 0o077 and any(entry.password is not None for entry in entries):
        raise UsageError(
            f"{path} holds a password and can be read by others",
            remedy=f"chmod 600 {path}",
        )
    return tuple(_beside(entry, path.parent) for entry in entries)


def _beside(entry: Credential, folder: Path) -> Credential:
    """Relative file names in a configuration mean files beside it."""
    named: dict[str, Any] = {
        name: str(folder / Path(value).expanduser())
        for name in _FILES
        if (value := getattr(entry, name)) is not None
    }
    return replace(entry, **named)


def _check_text(value: str, name: str, where: str) -> None:
    """Raise `UsageError` for a text that its use could not take."""
    if name in _FILES:
        problem = path_problem(value)
    elif name == "password_env" and (not value or "=" in value or "\0" in value):
        problem = "is not the name of an environment variable"
    elif name not in ("username", "password") and "\0" in value:
        problem = "holds a NUL"
    else:
        try:
            value.encode()
            return
        except UnicodeEncodeError:
            problem = "is not valid UTF-8"
    if problem is not None:
        raise UsageError(f"{where}: {name} {problem}")


def _unread(path: str) -> str | None:
    """Why the file cannot be read; None: it can."""
    try:
        with open(path, "rb"):
            return None
    except OSError as error:
        return error.strerror
    except ValueError:
        return path_problem(path) or "no path"


def _canonical(host: str) -> str:
    """Lower case, without the root's dot; an address in its shortest form."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return host.lower().removesuffix(".")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _known(names: list[str]) -> str:
    return f"Known: {', '.join(names)}."
