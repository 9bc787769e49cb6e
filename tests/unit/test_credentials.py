"""Credentials: which entry fits which server, and what a wrong configuration says."""

from __future__ import annotations

import json
import os
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.errors import UsageError
from engine.model.credentials import (
    CONFIG_VARIABLE,
    CREDENTIALS_VARIABLE,
    Credential,
    Credentials,
    config_path,
)
from engine.model.endpoint import Endpoint, Tls
from engine.model.password_source import IamToken, PasswordCommand, PasswordFile

SECRET = "correct-horse-battery"


@pytest.fixture(autouse=True)
def no_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The user's own configuration is no part of a test."""
    monkeypatch.delenv(CONFIG_VARIABLE, raising=False)
    monkeypatch.delenv(CREDENTIALS_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))


def entries(*items: dict[str, Any]) -> Credentials:
    return Credentials.read(list(items), "test")


def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, mode: int = 0o600) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(text)
    path.chmod(mode)
    monkeypatch.setenv(CONFIG_VARIABLE, str(path))
    return path


@pytest.mark.parametrize(
    ("pattern", "url", "fits"),
    [
        ("cache.example.com", "cache.example.com", True),
        ("cache.example.com", "CACHE.example.com.", True),
        ("cache.example.com", "cache2.example.com", False),
        ("*.prod.example.com", "a.prod.example.com", True),
        ("*.prod.example.com", "a.b.prod.example.com", True),
        # A password is for the ports that it was given for.
        ("*.prod.example.com", "a.b.prod.example.com:6380", False),
        ("*.prod.example.com:*", "a.b.prod.example.com:6380", True),
        ("cache", "cache:6380", False),
        ("*", "anything:22", False),
        ("*:*", "anything:22", True),
        ("::1", "redis://[::1]:6380", False),
        ("[::1]:*", "redis://[::1]:6380", True),
        ("*.prod.example.com", "prod.example.com", False),
        ("cache:6380", "cache:6380", True),
        ("cache:6380", "cache:6381", False),
        ("cache:63*", "cache:6381", True),
        ("10.0.0.*", "10.0.0.7", True),
        ("10.0.0.*:6380", "10.0.0.7", False),
        # What means addresses is for no name: anybody can have one that begins like them.
        ("10.0.0.*", "10.0.0.example.com", False),
        ("10.*", "10.example.com", False),
        ("10.*.example.com", "10.a.example.com", True),
        ("redis-?", "redis-1", True),
        ("::1", "redis://[::1]:6379", True),
        ("0:0:0:0:0:0:0:1", "redis://[::1]:6379", True),
        ("[::1]:6380", "redis://[::1]:6380", True),
        ("[::1]:6380", "redis://[::1]:6379", False),
        ("[::1]", "redis://[::1]:6379", True),
        ("[fd00:*]", "redis://[fd00::7]:6379", True),
        ("redis-[ab]", "redis-a", True),
        ("redis-[ab]", "redis-c", False),
        ("/run/redis.sock", "unix:///run/redis.sock", True),
        ("unix:/run/redis.sock", "unix:///run/redis.sock", True),
        ("/run/*.sock", "unix:///run/redis.sock", True),
        ("/run/*.sock", "run", False),
        ("cache", "unix:///run/redis.sock", False),
        # The socket that is dialled counts, and a * takes in no /.
        ("/run/*.sock", "unix:///run/deep/redis.sock", False),
        ("/run/*.sock", "unix:///run/../srv/redis.sock", False),
        ("/run/*/redis.sock", "unix:///run/deep/redis.sock", True),
        ("unix:///run/redis.sock", "unix:///run/redis.sock", True),
        ("unix:/run//./redis.sock", "unix:///run/redis.sock", True),
        ("*.sock", "unix:///run/redis.sock", False),
        ("*", "anything", True),
        ("*", "unix:///run/redis.sock", True),
    ],
)
def test_patterns(pattern: str, url: str, fits: bool) -> None:
    entry = Credential.read({"host": pattern, "password": SECRET}, "test")
    assert entry.fits(Endpoint.parse(url)) is fits


def test_the_first_fitting_entry_wins() -> None:
    found = entries(
        {"host": "b", "password": "other"},
        {"host": "*", "password": "first"},
        {"host": "a", "password": "second"},
    )
    assert found.apply(Endpoint.parse("a")).password == "first"
    assert entries().apply(Endpoint.parse("a")) == Endpoint.parse("a")


def test_what_the_url_says_is_kept() -> None:
    found = entries({"host": "*", "username": "configured", "password": SECRET})
    own = Endpoint.parse("redis://me:mine@a")
    assert found.apply(own) == own
    both = found.apply(Endpoint.parse("a"))
    assert (both.username, both.password) == ("configured", SECRET)


def test_an_entry_of_another_user_does_not_fit() -> None:
    found = entries(
        {"host": "*", "username": "alice", "password": "of alice"},
        {"host": "*", "password": "of anyone"},
    )
    assert found.apply(Endpoint.parse("redis://alice@a")).password == "of alice"
    bob = found.apply(Endpoint.parse("redis://bob@a"))
    assert (bob.username, bob.password) == ("bob", "of anyone")


def test_tls_is_merged() -> None:
    given = {"host": "*", "ca_file": "/ca.pem", "server_name": "inner", "verify": False}
    found = entries(given)
    assert found.apply(Endpoint.parse("a")).tls == Tls(False, "/ca.pem", None, None, "inner")
    own = found.apply(Endpoint.parse("rediss://a?ca_file=/own.pem")).tls
    assert own == Tls(False, "/own.pem", None, None, "inner")
    assert entries({"host": "*", "tls": True}).apply(Endpoint.parse("a")).tls == Tls()
    assert entries({"host": "*", "tls": False}).apply(Endpoint.parse("rediss://a")).tls == Tls()
    assert found.apply(Endpoint.parse("unix:///s")).tls is None


def test_password_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "secret"
    file.write_text(f"{SECRET}\n")
    monkeypatch.setenv("A_PASSWORD", "from the environment")
    of_file = entries({"host": "*", "password_file": str(file)})
    assert of_file.apply(Endpoint()).password == SECRET
    of_env = entries({"host": "*", "password_env": "A_PASSWORD"})
    assert of_env.apply(Endpoint()).password == "from the environment"


def test_passwords_that_are_read_with_each_dial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_text(SECRET)
    os.mkfifo(tmp_path / "pipe")
    file = entries({"host": "a", "password_file": str(tmp_path / "secret")})
    assert file.apply(Endpoint("a")).password_source == PasswordFile(str(tmp_path / "secret"))
    pipe = Credential("a", password_file=str(tmp_path / "pipe"))
    assert pipe.source is None
    told = entries({"host": "a", "password_command": f"pass show '{SECRET} x'"})
    filled = told.apply(Endpoint("a"))
    assert filled.password_source == PasswordCommand(("pass", "show", f"{SECRET} x"))
    assert (filled.password, filled.has_password) == (None, True)
    assert SECRET not in f"{told!r}{filled!r}{filled.url}"
    monkeypatch.setenv(CREDENTIALS_VARIABLE, told.to_json())
    assert Credentials.load() == told
    # Servers that are found on the way have it too; one that the URL names has its own.
    assert told.beside(filled, "10.0.0.2:6379").password_source == filled.password_source
    assert told.apply(Endpoint("a", password="mine")).password_source is None
    assert told.and_of(filled) == told
    assert filled.without_credentials == Endpoint("a")
    iam = entries({"host": "a", "username": "u", "iam": "memorydb/eu-west-1/G"})
    signed = iam.apply(Endpoint("a"))
    assert signed.password_source == IamToken("memorydb", "eu-west-1", "g", "u")
    assert (signed.tls, signed.has_password) == (Tls(), True)
    missing = entries({"host": "a", "password_command": "no-such-program-anywhere"})
    (problem,) = missing.unreadable()
    assert "no-such-program-anywhere for a cannot be run: there is no such program" in problem


def test_passwords_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        entries({"host": "*", "password_file": str(tmp_path / "no")}).apply(Endpoint())
    with pytest.raises(UsageError, match="NOT_SET_ANYWHERE, which is not set"):
        entries({"host": "*", "password_env": "NOT_SET_ANYWHERE"}).apply(Endpoint())
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not UTF-8"):
        entries({"host": "*", "password_file": str(binary)}).apply(Endpoint())
    (empty := tmp_path / "empty").write_text("\n")
    with pytest.raises(UsageError, match="empty is empty"):
        entries({"host": "*", "password_file": str(empty)}).apply(Endpoint())


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"host": "a", "pasword": SECRET}, "unknown key 'pasword'"),
        ({"password": SECRET}, "host is missing"),
        ({"host": ""}, "host is missing"),
        ({"host": 1}, "host is not a string"),
        ({"host": "a", "password": 1234}, "password is not a string"),
        ({"host": "a", "tls": "yes"}, "tls is not true or false"),
        ({"host": "a", "verify": 1}, "verify is not true or false"),
        ({"host": "a", "password": SECRET, "password_env": "X"}, "exclude each other"),
        ({"host": "a", "tls": False, "ca_file": "/ca"}, "ca_file cannot be given"),
        ("a string", "not a table"),
        ({"host": "a", "password_command": []}, "password_command names no program"),
        ({"host": "a", "password_command": ""}, "password_command names no program"),
        ({"host": "a", "password_command": 7}, "neither a text nor a list"),
        ({"host": "a", "password_command": ["x", 7]}, "neither a text nor a list"),
        ({"host": "a", "password_command": f"echo '{SECRET}"}, "split into words: no closing"),
        ({"host": "a", "password_command": ["a\0b"]}, "password_command holds a NUL"),
        ({"host": "a", "password_command": ["a\ud800"]}, "password_command is not valid UTF-8"),
        ({"host": "a", "password_command": "x", "password_file": "/x"}, "exclude each other"),
        ({"host": "a", "iam": "elasticache/eu-west-1/g"}, "iam needs a username"),
        ({"host": "a", "username": "u", "iam": "elasticache/g"}, "iam does not say whose token"),
        ({"host": "a", "username": "u", "iam": "s3/eu-west-1/g"}, "iam does not say whose token"),
        ({"host": "a", "username": "u", "iam": 1}, "iam is not a string"),
        (
            {"host": "a", "username": "u", "iam": "memorydb/eu-west-1/g", "password": SECRET},
            "exclude each other",
        ),
    ],
)
def test_wrong_entries(item: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        Credentials.read([{"host": "fine"}, item], "config.toml")
    assert "config.toml: credentials entry 2" in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_password_is_in_no_repr() -> None:
    found = entries({"host": "*", "password": SECRET})
    assert SECRET not in repr(found) + str(found)


def test_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = f'[[credentials]]\nhost = "a"\npassword = "{SECRET}"\nca_file = "ca.pem"\n'
    config(tmp_path, monkeypatch, text)
    found = Credentials.load().apply(Endpoint.parse("a"))
    assert found.password == SECRET
    assert found.tls == Tls(ca_file=str(tmp_path / "ca.pem"))


def test_the_default_file(tmp_path: Path) -> None:
    path = tmp_path / "xdg" / "startmigration" / "config.toml"
    assert config_path() == (path, False)
    assert Credentials.load() == Credentials()
    path.parent.mkdir(parents=True)
    path.write_text('[[credentials]]\nhost = "a"\nusername = "u"\n')
    assert Credentials.load().apply(Endpoint.parse("a")).username == "u"


def test_the_environment_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config(tmp_path, monkeypatch, '[[credentials]]\nhost = "*"\npassword = "of the file"\n')
    monkeypatch.setenv(CREDENTIALS_VARIABLE, json.dumps([{"host": "a", "password": SECRET}]))
    found = Credentials.load()
    assert found.apply(Endpoint.parse("a")).password == SECRET
    assert found.apply(Endpoint.parse("b")).password == "of the file"
    monkeypatch.setenv(CREDENTIALS_VARIABLE, found.to_json())
    monkeypatch.delenv(CONFIG_VARIABLE)
    assert Credentials.load() == found


@pytest.mark.parametrize(
    ("host", "write"),
    [
        ("h:63790x", "every port"),
        ("h:0-99999", "A range is for --allow-endpoint: write an entry for each port"),
        ("h:6379-6390", "A range is for --allow-endpoint"),
        ("h:0", "every port"),
        ("h:65536", "every port"),
        ("h:06379", "every port"),
        ("h:", "every port"),
        ("[::1]:7*7x", "every port"),
        ("[::1", r"as \[::1\]:6379"),
        ("::1]", r"as \[::1\]:6379"),
        ("[::1]x", r"as \[::1\]:6379"),
        ("[::1]:", r"as \[::1\]:6379"),
        ("::g", r"as \[::1\]:6379"),
        ("10.0.0.1:6379:6380", r"as \[::1\]:6379"),
        ("[10.0.0.1]:6380", r"write 10\.0\.0\.1"),
        ("10.0.0.256", "Expected HOST"),
        ("10.0.0.0/8", "a pattern"),
        ("run/x.sock", "from the / on"),
        ("unix:run/x.sock", "no absolute path"),
        ("unix:", "no absolute path"),
        ("/run/", r"unix:/run/\*"),
        ("a,b", "an entry for each"),
        ("a b", "an entry for each"),
        ("redis://u:correct-horse-battery@h", "Write host = 'h:6379'"),
        ("rediss://h:7000", "Write host = 'h:7000'"),
        ("u:correct-horse-battery@h", "names a user"),
        ("a..b", "Expected HOST"),
        (".example.com", "Expected HOST"),
        ("*..example.com", "Expected a name"),
        ("redis-[ab", "Expected a name"),
        ("bücher.example", "Expected HOST"),
    ],
)
def test_a_host_that_no_server_fits_says_what_to_write(host: str, write: str) -> None:
    with pytest.raises(UsageError, match=write) as caught:
        Credentials.read([{"host": "fine"}, {"host": host}], "config.toml")
    assert "config.toml: credentials entry 2: host" in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("name", ["password_file", "ca_file", "cert_file", "key_file"])
@pytest.mark.parametrize(
    ("path", "words"),
    [("/a\\u0000b", "holds a NUL"), ("~no-such-user/x", "no home directory"), ("", "is empty")],
)
def test_paths_that_cannot_be(
    name: str, path: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = config(tmp_path, monkeypatch, f'[[credentials]]\nhost = "a"\n{name} = "{path}"\n')
    with pytest.raises(UsageError, match=words) as caught:
        Credentials.load()
    assert f"{file}: credentials entry 1: {name}" in str(caught.value)


@pytest.mark.parametrize(
    "item",
    [
        {"password": "\ud800"},
        {"username": "\ud800"},
        {"password_file": "/\ud800"},
        {"password_env": "\ud800"},
        {"password_env": "A=B"},
        {"password_env": ""},
        {"server_name": "a\0b"},
    ],
)
def test_texts_that_cannot_be_used(item: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON can say what no file's name and no password is."""
    monkeypatch.setenv(CREDENTIALS_VARIABLE, json.dumps([{"host": "a", **item}]))
    with pytest.raises(UsageError, match=f"credentials entry 1: {next(iter(item))} "):
        Credentials.load()


def test_what_the_configurations_own_path_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("XDG_CONFIG_HOME", CONFIG_VARIABLE):
        monkeypatch.setenv(variable, "~no-such-user/x")
        with pytest.raises(UsageError, match=f"{variable}: .* no home directory"):
            Credentials.load()


def test_files_that_are_not_there_yet(tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    found = entries(
        {"host": "a", "password_file": str(tmp_path / "pw")},
        {"host": "b", "ca_file": str(tmp_path / "ca"), "cert_file": str(tmp_path / "there")},
        {"host": "c", "ca_file": str(tmp_path)},
        {"host": "d"},
    )
    password, missing, folder = found.unreadable()
    assert password == f"the password file {tmp_path}/pw cannot be read: No such file or directory"
    assert missing == f"the ca_file {tmp_path}/ca for b cannot be read: No such file or directory"
    assert folder == f"the ca_file {tmp_path} for c cannot be read: Is a directory"


def test_a_library_s_own_entry_with_a_path_that_cannot_be() -> None:
    for path in ("/a\0b", "~no-such-user/x"):
        with pytest.raises(UsageError, match="cannot be read"):
            Credential("a", password_file=path).secret()


def test_what_a_url_says_is_kept_for_the_processes_that_need_it() -> None:
    """Its entry is read there, whatever the server's address looks like."""
    for url in ("redis://u:p@10.0.0.7:6380", "redis://u:p@[fd00::1]", "redis://u:p@a_b.example.com.",
                "unix://u:p@/run/a[*]%3Fb.sock", "redis://u:p@[fe80::1%25eth0]:7000"):  # fmt: skip
        endpoint = Endpoint.parse(url)
        told = json.loads(entries().and_of(endpoint).to_json())
        bare = replace(endpoint, username=None, password=None)
        assert Credentials.read(told, "test").apply(bare).password == "p", url


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
def test_a_file_that_others_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    path = config(tmp_path, monkeypatch, '[[credentials]]\nhost = "a"\npassword = "p"\n', mode)
    with pytest.raises(UsageError, match="can be read by others") as caught:
        Credentials.load()
    assert caught.value.remedy == f"chmod 600 {path}"


def test_a_file_without_passwords_may_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config(tmp_path, monkeypatch, '[[credentials]]\nhost = "a"\npassword_env = "P"\n', 0o644)
    assert len(Credentials.load().entries) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[credentials]\n", "is not TOML"),
        (f"[[credentials]]\nhost = 'a'\npassword = '{SECRET}\n", "is not TOML"),
        ("credentials = 1\n", "must be a list of tables"),
        ("[[credential]]\nhost = 'a'\n", "unknown key 'credential'"),
        ("[[credentials]]\nhosts = 'a'\n", "unknown key 'hosts'"),
    ],
)
def test_wrong_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    path = config(tmp_path, monkeypatch, text)
    with pytest.raises(UsageError, match=message) as caught:
        Credentials.load()
    assert str(path) in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_named_file_must_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CONFIG_VARIABLE, str(tmp_path / "no.toml"))
    with pytest.raises(UsageError, match=r"no\.toml, which does not exist"):
        Credentials.load()
    monkeypatch.setenv(CONFIG_VARIABLE, str(tmp_path))
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        Credentials.load()


def test_a_file_that_is_not_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(b"\xff\xfe\x00")
    monkeypatch.setenv(CONFIG_VARIABLE, str(path))
    with pytest.raises(UsageError, match="not UTF-8"):
        Credentials.load()


@pytest.mark.parametrize("text", [f"[{{{SECRET}", '{"host": "a"}', "[1]", "null"])
def test_a_wrong_environment(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(CREDENTIALS_VARIABLE, text)
    with pytest.raises(UsageError, match=CREDENTIALS_VARIABLE) as caught:
        Credentials.load()
    # Not in a traceback either: the parser's error would carry the whole text.
    assert SECRET not in "".join(traceback.format_exception(caught.value))
