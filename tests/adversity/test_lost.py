"""What the target has refused, and is no key: known to whoever goes on with a migration."""

from __future__ import annotations

from benches.support.engines import Migration
from tests.support.functions import code
from tests.support.servers import ServerFactory, known


def test_what_was_refused_is_known_to_the_next_worker(
    migration: Migration, server_factory: ServerFactory
) -> None:
    """Nobody may list libraries: that it was refused is all that is known of it."""
    source, target = (server_factory(known("redis-7.0")) for _ in range(2))
    source.client().function_load(code("mylib", "f"))
    for server, denied in ((source, []), (target, ["-function|load"])):
        server.client().execute_command("ACL", "SETUSER", "default", "-function|list", *denied)
    migration.register(target)
    migration.start(source, "--source-type", "replica")
    migration.wait_for(lambda found: "library mylib" in str(found["Reason"]))
    migration.kill()
    migration.resume(verb=False)
    source.client().set("later", "1")
    found = migration.wait_for(lambda found: found["Phase"] == "FOLLOW" and found["Reason"])
    assert "library mylib" in found["Reason"], found
    assert not found["CanComplete"]
    source.client().execute_command("ACL", "SETUSER", "default", "+function|list")
    target.client().execute_command("ACL", "SETUSER", "default", "+function|load")
    migration.wait_for(lambda found: found["CanComplete"])
    migration.complete()
    assert target.client().fcall("f", 0) == 1
