"""The file of access keys: who may read it, and what is in it."""

from __future__ import annotations

import json
import os
import re
import resource
from pathlib import Path

import pytest

from engine.cli import app
from engine.errors import UsageError
from engine.front.access_keys import AccessKeys, Role, create


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def test_a_key_is_made_and_found(file: Path) -> None:
    made = [create(file, role) for role in Role]
    assert file.stat().st_mode & 0o777 == 0o600
    keys = AccessKeys(file)
    for key, role in zip(made, Role, strict=True):
        assert keys.find(key.id) == key
        assert key.role is role
        assert re.fullmatch("SMIG[A-Z2-7]{16}", key.id)
        assert len(key.secret) == 40
        assert key.secret not in repr(key)
    assert keys.find("SMIGNOBODYNOBODYNOBO") is None
    assert len({key.id for key in made} | {key.secret for key in made}) == 6


def test_roles_contain_each_other() -> None:
    allowed = {role: [other.value for other in Role if role.allows(other)] for role in Role}
    assert allowed == {
        Role.READ: ["read"],
        Role.MIGRATE: ["read", "migrate"],
        Role.ADMIN: ["read", "migrate", "admin"],
    }


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o602, 0o610])
def test_a_file_that_others_can_read_is_refused(file: Path, mode: int) -> None:
    create(file, Role.READ)
    file.chmod(mode)
    with pytest.raises(UsageError, match=r"read by others\. chmod 600"):
        AccessKeys(file)
    before = file.read_bytes()
    with pytest.raises(UsageError, match="read by others"):
        create(file, Role.READ)
    assert file.read_bytes() == before


def test_a_key_is_revoked_and_another_one_added_while_it_runs(file: Path) -> None:
    first, second = create(file, Role.READ), create(file, Role.ADMIN)
    keys = AccessKeys(file)
    lines = file.read_text().splitlines(keepends=True)
    file.write_text(lines[1])
    assert (keys.find(first.id), keys.find(second.id)) == (None, second)
    third = create(file, Role.MIGRATE)
    assert keys.find(third.id) == third


def test_a_damaged_file_lets_nobody_in(file: Path) -> None:
    key = create(file, Role.ADMIN)
    keys = AccessKeys(file)
    good = file.read_text()
    with file.open("a") as damaged:
        damaged.write('{"AccessKeyId": "S')
    with pytest.raises(UsageError, match="line 2: not a JSON object") as caught:
        keys.find(key.id)
    assert key.secret not in str(caught.value)
    assert caught.value.__cause__ is None
    file.write_text(good)
    assert keys.find(key.id) == key
    file.chmod(0o644)
    with pytest.raises(UsageError, match="read by others"):
        keys.find(key.id)
    file.unlink()
    with pytest.raises(UsageError, match="cannot be read"):
        keys.find(key.id)


def test_a_file_that_cannot_be_read_for_a_moment(file: Path) -> None:
    """Without descriptors nobody is let in; with some again everybody, though the file is as it
    was."""
    key = create(file, Role.ADMIN)
    keys = AccessKeys(file)
    os.utime(file)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(UsageError, match="Too many open files"):
            keys.find(key.id)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert keys.find(key.id) == key


def test_a_change_that_hides_its_time_is_seen(file: Path) -> None:
    key = create(file, Role.ADMIN)
    keys = AccessKeys(file)
    before = file.stat()
    file.write_text(file.read_text().replace(key.secret, "x" * len(key.secret)))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    found = keys.find(key.id)
    assert found is not None
    assert found.secret == "x" * len(key.secret)


def test_a_key_is_added_to_what_an_editor_left(file: Path) -> None:
    first = create(file, Role.READ)
    file.write_text(file.read_text().rstrip("\n"))
    second = create(file, Role.ADMIN)
    keys = AccessKeys(file)
    assert (keys.find(first.id), keys.find(second.id)) == (first, second)


ROW = {"AccessKeyId": "A" * 20, "SecretAccessKey": "s3cret" * 5, "Role": "read"}


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ([1], "expected an object"),
        ({**ROW, "More": 1}, "expected an object"),
        ({**ROW, "AccessKeyId": "short"}, "AccessKeyId"),
        ({**ROW, "AccessKeyId": "A" * 16 + "/"}, "AccessKeyId"),
        ({**ROW, "SecretAccessKey": "s3cret"}, "SecretAccessKey"),
        ({**ROW, "SecretAccessKey": None}, "SecretAccessKey"),
        ({**ROW, "SecretAccessKey": "\ud800" * 20}, "SecretAccessKey"),
        ({**ROW, "Role": "root"}, "Role is not one of read, migrate, admin"),
        ({**ROW, "Role": None}, "Role"),
    ],
)
def test_what_a_line_must_have(file: Path, row: object, complaint: str) -> None:
    file.touch(0o600)
    file.write_text(f"{json.dumps(ROW)}\n\n{json.dumps(row)}\n")
    with pytest.raises(UsageError, match=f"line 3: .*{complaint}") as caught:
        AccessKeys(file)
    assert "s3cret" not in str(caught.value)


def test_other_files(file: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        AccessKeys(file)
    file.touch(0o600)
    file.write_text(f"{json.dumps(ROW)}\n" * 2)
    with pytest.raises(UsageError, match="there twice"):
        AccessKeys(file)
    file.write_bytes(b" " * ((1 << 20) + 1))
    with pytest.raises(UsageError, match="longer than"):
        AccessKeys(file)
    open_before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(UsageError, match="cannot be"):
        AccessKeys(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == open_before
    os.mkfifo(tmp_path / "fifo", 0o600)
    with pytest.raises(UsageError, match="is not a file"):
        create(tmp_path / "fifo", Role.READ)
    with pytest.raises(UsageError, match="is not a file"):
        AccessKeys(tmp_path / "fifo")
    file.write_text("[" * 100_000)
    with pytest.raises(UsageError, match="not a JSON object"):
        AccessKeys(file)


def test_the_verb_shows_the_secret_once(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["create-access-key", "--credentials", str(file), "--role", "migrate"]
    assert app.run([*arguments, "--output", "json"]) == 0
    shown = json.loads(capsys.readouterr().out)["AccessKey"]
    found = AccessKeys(file).find(shown["AccessKeyId"])
    assert found is not None
    assert (found.secret, found.role.value) == (shown["SecretAccessKey"], "migrate")
    assert app.run(arguments) == 0
    assert re.search(r"SecretAccessKey +\S{40}\n", capsys.readouterr().out)
    assert app.run(["create-access-key", "--credentials", str(file), "--role", "root"]) == 2
    assert app.run([*arguments[:2], str(file.parent / "no" / "keys"), *arguments[3:]]) == 2
    assert "UsageError" in capsys.readouterr().err
