"""What tests share; each file is one thing, and a test names the file that it needs.

    scenario        a test's story: two servers, proxies, data, a migration by any face, the end
    library         a migration by the library, in a thread of the test's process
    faces           a migration by a worker: by the command line, the library's verbs, the API
    command_line    the verbs on the command line, with one group
    in_one_go       the library's `migrate`; `completing`: the word, given again where it has to be
    servers         a server by its release; addresses, offsets, write blocks
    replicas        native replicas
    postgres        a PostgreSQL for the state
    processes       processes of the engine: killed, frozen, waited for
    writers         what counts up or writes meanwhile, in a thread
    traffic         random writes of every command; clients that repeat what is not acknowledged
    timed_clients   clients in processes of their own, with times; `applications`: foreign ones
    standstill      how long the machine stood still, for bounds of how long clients wait
    reporting_process   a process beside a test, asked for what it found (either of these two)
    three_shards    three shards into three, for lanes that go on in several processes
    relay           what `--connect-command` runs
    trouble         ends of every shape, and what befalls them
    comparison      whether both ends hold the same
    own_keys        that nothing of the engine is left
    lanes           lanes laid out by hand; `lanes_process`, `steps`: killed at a step
    checkpoints     what a migration has noted; engines that die at one
    snapshots, feeding, raw_replica, followers, handshakes    the readers, the source alone
    functions, preflight, browser, server_table, value_table, state_of_version_1    for one kind of
                    test each

A test waits with `benches.support.waiting.wait_for`, breaks links with `benches.support.proxy`, and
kills engines with `benches.support.engines`. Nothing is imported here.
"""
