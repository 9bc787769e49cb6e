"""Libraries of functions, on real servers: carried by both ways, compared, and named where lost."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from benches.support.engines import Cli
from benches.support.servers import Server
from engine.fleet.cut_over_comparisons import verification_gate_of
from engine.model.endpoint import Endpoint
from engine.model.settings import TransferSettings
from engine.transfer.functions_and_scripts import library_name
from engine.transfer.preflight import preflight
from engine.wire import functions_and_indexes
from tests.support.functions import code
from tests.support.library import Run, copied, migrating
from tests.support.servers import ServerFactory, known


@pytest.fixture
def ends(server_factory: ServerFactory) -> tuple[Server, Server]:
    source, target = server_factory(known("redis-7.0")), server_factory(known("redis-7.0"))
    source.client().set("key", "value")
    source.client().function_load(code("mylib", "f"))
    return source, target


def in_the_way(target: Server) -> None:
    """A library with a function of the same name: the target refuses the source's."""
    target.client().function_load(code("older", "f", 7))


def scanned(source: Server, target: Server, **options: object) -> Run:
    settings = TransferSettings(source_type="scan")
    gate = verification_gate_of(
        Endpoint.parse(source.url), Endpoint.parse(target.url), settings, lambda: False
    )
    return copied(source, target, gate=gate, **options)  # type: ignore[arg-type]


def test_one_that_the_target_refuses_keeps_the_gate_shut(ends: tuple[Server, Server]) -> None:
    source, target = ends
    in_the_way(target)

    with migrating(source, target, timeout=60) as run:
        run.following()
        run.wait_for(lambda: "library mylib" in run.progress.reason, "its name")
        assert not run.progress.can_complete
        assert "Function f already exists" in run.progress.reason
        target.client().function_delete("older")
        # It is looked for again now and then, and loaded.
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert run.report.left_out == ()
    assert run.report.verification is not None
    assert run.report.verification.libraries == 1
    assert target.client().fcall("f", 0) == 1


def test_one_that_the_target_alone_has(ends: tuple[Server, Server]) -> None:
    source, target = ends

    with migrating(source, target, timeout=60) as run:
        run.following()
        run.in_sync()
        target.client().function_load(code("another", "g"))
        run.complete()
        run.wait_for(lambda: "library another: on the target alone" in str(run.events), "its name")
        assert "(FUNCTION DELETE another there removes it)" in str(run.events)
        run.wait_for(lambda: not run.progress.can_complete, "a gate that is shut")
        target.client().function_delete("another")
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)


def test_an_older_one_is_replaced(ends: tuple[Server, Server]) -> None:
    source, target = ends

    with migrating(source, target) as run:
        run.following()
        run.in_sync()
        target.client().function_load(code("mylib", "f", 7), replace=True)
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert target.client().fcall("f", 0) == 1


def test_scanning_carries_them(ends: tuple[Server, Server]) -> None:
    source, target = ends
    run = scanned(source, target)
    assert run.report.status == "done", run.report.errors
    assert target.client().fcall("f", 0) == 1
    assert run.report.verification is not None
    assert run.report.verification.libraries == 1


def test_scanning_names_the_one_that_is_refused(ends: tuple[Server, Server]) -> None:
    source, target = ends
    in_the_way(target)
    run = scanned(source, target)
    assert run.report.status == "stopped"
    assert "library mylib" in run.report.errors[0]
    assert "Function f already exists" in run.report.errors[0]
    assert any(each.startswith("library mylib: ") for each in run.report.left_out)


def test_scanning_some_keys_leaves_them_and_says_so(ends: tuple[Server, Server]) -> None:
    source, target = ends
    run = scanned(source, target, match="k*")
    assert run.report.left_out == ("libraries of functions, as keys are chosen: mylib",)
    assert target.client().function_list() == []


@pytest.mark.parametrize("until", ["cut-over", "snapshot"])
@pytest.mark.parametrize("way", ["replica", "scan"])
def test_the_exit_code_of_a_target_without_functions(
    way: str,
    until: str,
    ends: tuple[Server, Server],
    server_factory: ServerFactory,
    state_url: str,
    tmp_path: Path,
) -> None:
    source, _ = ends
    target = server_factory(known("redis-6.2"))
    cli = Cli(state_url, tmp_path)
    try:
        told = cli(
            "migrate", "--source", source.url, "--target", target.url, "--source-type", way,
            "--until", until, "--output", "json",
        )  # fmt: skip
        assert told.code == 1, told
        assert "library mylib" in str(told.json["errors"])
        assert "mylib" in told.err or "mylib" in told.out
    finally:
        cli.close()


@pytest.mark.parametrize("header", ["#!lua NAME=mylib", '#!lua name="mylib"', "#!LUA 'Name=mylib'"])
def test_a_file_s_library_whose_name_is_written_otherwise(
    header: str,
    ends: tuple[Server, Server],
    server_factory: ServerFactory,
    state_url: str,
    tmp_path: Path,
) -> None:
    """As the server reads its first line; whatever stands there, the library is missing."""
    source, target = ends[0], server_factory(known("redis-6.2"))
    text = code("mylib", "f").split("\n", 1)[1]
    source.client().function_load(f"{header}\n{text}", replace=True)
    (told,) = source.client().execute_command("FUNCTION", "LIST")
    told = told if isinstance(told, dict) else dict(zip(told[::2], told[1::2], strict=True))
    assert told[b"library_name"].decode() == "mylib"
    assert library_name(f"{header}\n{text}".encode()) == "mylib"
    source.client().save()
    cli = Cli(state_url, tmp_path)
    try:
        told = cli(
            "migrate", "--source", f"rdb:{source.folder}/dump.rdb", "--target", target.url,
            "--output", "json",
        )  # fmt: skip
        assert told.code == 1, told
        assert "library mylib" in str(told.json["errors"])
    finally:
        cli.close()


def test_a_library_without_a_name_is_one() -> None:
    assert library_name(b"#)lua name=l\n") == library_name(b"#!lua\nname=l") == ""


def test_what_a_user_may_not_ask_is_said(ends: tuple[Server, Server]) -> None:
    """And without WATCH it is not proven before the fence that a key differs: so it is read again,
    and compared behind it."""
    source, target = ends
    client = source.client()
    client.execute_command("ACL", "SETUSER", "few", "on", ">pw", "~*", "&*", "+@all")
    client.execute_command("ACL", "SETUSER", "few", "-function|list", "-watch", "-unwatch")
    client.xadd("stream", {"f": "v"}, id="1-1")
    client.xgroup_create("stream", "group", "0")
    client.xreadgroup("group", "reader", {"stream": ">"})

    with migrating(f"redis://few:pw@{source.host}:{source.port}", target) as run:
        run.following()
        run.in_sync(source)
        client.xreadgroup("group", "reader", {"stream": "0"})
        run.cut_over(source)
    assert run.report.status == "done", (run.report.errors, run.events)
    verification = run.report.verification
    assert verification is not None
    assert "may not run it: FUNCTION LIST on the source" in verification.reason
    assert verification.over_budget == ()
    found = target.client().xpending_range("stream", "group", "-", "+", 1)
    assert found[0]["times_delivered"] == 2


@pytest.mark.parametrize(
    ("way", "denied_source", "denied_target", "named"),
    [
        ("replica", "", "-function", "library mylib"),
        ("replica", "-function", "-function", "library mylib"),
        ("replica", "-function|list", "-function|load", "library mylib"),
        ("replica", "-function|list", "", ""),
        ("scan", "-function", "", "function libraries: 1 on the source"),
        ("scan", "", "-function", "library mylib"),
    ],
)
def test_users_who_may_not_do_everything(
    way: str,
    denied_source: str,
    denied_target: str,
    named: str,
    ends: tuple[Server, Server],
    state_url: str,
    tmp_path: Path,
) -> None:
    """What is refused is lost, whoever may list what is there; and numbers are told to all."""
    urls = []
    for server, denied in zip(ends, (denied_source, denied_target), strict=True):
        client = server.client()
        client.execute_command("ACL", "SETUSER", "few", "on", ">pw", "~*", "&*", "+@all")
        if denied:
            client.execute_command("ACL", "SETUSER", "few", denied)
        urls.append(f"redis://few:pw@{server.host}:{server.port}")
    cli = Cli(state_url, tmp_path)
    try:
        told = cli(
            "migrate", "--source", urls[0], "--target", urls[1], "--source-type", way,
            "--output", "json",
        )  # fmt: skip
    finally:
        cli.close()
    assert told.code == (1 if named else 0), told
    if named:
        assert named in str(told.json["errors"])
        ends[0].client().set("written", "1")  # the source is as it was
    else:
        assert ends[1].client().fcall("f", 0) == 1


def test_one_that_the_target_alone_has_and_nobody_may_list(ends: tuple[Server, Server]) -> None:
    source, target = ends
    target.client().execute_command(
        "ACL", "SETUSER", "few", "on", ">pw", "~*", "&*", "+@all", "-function|list"
    )

    with migrating(source, f"redis://few:pw@{target.host}:{target.port}", timeout=60) as run:
        run.following()
        run.in_sync()
        target.client().function_load(code("another", "g"))
        run.complete()
        told = "function libraries: 1 on the source, 2 on the target"
        run.wait_for(lambda: told in str(run.events), "the numbers")
        run.wait_for(lambda: not run.progress.can_complete, "a gate that is shut")
        target.client().function_delete("another")
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)


def test_a_library_that_cannot_be_listed_is_loaded_again(ends: tuple[Server, Server]) -> None:
    source, target = ends
    client = target.client()
    client.execute_command("ACL", "SETUSER", "few", "on", ">pw", "~*", "&*", "+@all", "-function")

    with migrating(source, f"redis://few:pw@{target.host}:{target.port}", timeout=60) as run:
        run.following()
        run.wait_for(lambda: "library mylib" in run.progress.reason, "its name")
        run.wait_for(lambda: not run.progress.can_complete, "a gate that is shut")
        client.execute_command("ACL", "SETUSER", "few", "+function|load")
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert client.fcall("f", 0) == 1


def test_the_preflight_names_what_goes_astray(
    ends: tuple[Server, Server], server_factory: ServerFactory
) -> None:
    source, target = ends
    old = server_factory(known("redis-6.2"))
    target.client().function_load(code("another", "g"))

    def told(target: Server) -> list[str]:
        ends = Endpoint.parse(source.url), Endpoint.parse(target.url)
        checks = asyncio.run(preflight(*ends, TransferSettings())).checks
        return [f"{each.outcome}: {each.figure}" for each in checks if each.name == "beside-keys"]

    assert told(target) == ["warn: libraries that only the target has: another"]
    (found,) = told(old)
    assert found.startswith("warn: Redis 6.2")
    assert found.endswith("knows no functions, and the source has libraries: mylib")
    target.client().function_delete("another")
    assert told(target) == []


def test_the_names_of_search_indexes() -> None:
    """As RediSearch tells them: a list, or a set by RESP3."""
    assert functions_and_indexes.index_names([b"idx:users", b"idx"]) == {"idx:users", "idx"}
    assert functions_and_indexes.index_names([]) == set()
    held = functions_and_indexes.read([[], [b"one", b"two"]])
    less = functions_and_indexes.read([[], [b"two"]])
    assert functions_and_indexes.lacking(held, less, extra=False) == {
        "search index one": "missing on the target"
    }
    assert functions_and_indexes.lacking(less, held, extra=False) == {}


def test_search_indexes_of_a_server_without_the_module(ends: tuple[Server, Server]) -> None:
    async def ask() -> functions_and_indexes.FunctionsAndIndexes:
        from engine.wire.control_connection import admin

        async with admin(Endpoint.parse(ends[0].url)) as end:
            return await functions_and_indexes.ask(end)

    held = asyncio.run(ask())
    assert held.indexes is None
    assert held.denied == ()
    assert set(held.libraries or ()) == {"mylib"}


def test_a_command_of_the_stream_that_the_target_denies_is_named_with_its_rule(
    ends: tuple[Server, Server],
) -> None:
    source, target = ends
    client = target.client()
    client.execute_command("ACL", "SETUSER", "few", "on", ">pw", "~*", "&*", "+@all")
    client.execute_command("ACL", "SETUSER", "few", "-function|delete")

    with migrating(source, f"redis://few:pw@{target.host}:{target.port}") as run:
        run.following()
        source.client().function_delete("mylib")
    (error,) = run.report.errors
    assert "the target does not let the user write that: NOPERM" in error
    assert error.endswith("On the target: ACL SETUSER few +function|delete.")
