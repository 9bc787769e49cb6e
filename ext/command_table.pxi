# The commands of a replication stream: a row for each, with its keys and what is to be known of it.
#
# The facts are the servers' own: COMMAND and COMMAND DOCS of those that run in the tests, and the
# published descriptions of Redis 2.8 to 8.12, Valkey 7.2 to 9.2 and their modules. A test walks
# COMMAND of every server in the cache and fails where a command that writes has no row; another
# compares the keys with those that COMMAND GETKEYS names.
#
# A row: the name (`container|subcommand` where the subcommands differ in their keys), its keys, its
# flags. Keys, by the number of their argument, the name being 0:
#
#   w1           the argument 1                  w1-*     the argument 1 and all behind it
#   w1-^         all but the last one            w1-*/2   every second one
#   w2#          as many as argument 2 says, behind it; w1#/2: each with a value behind it
#
# and forms of one command or two: `streams`, `store`, `sort`, `migrate`. The letters are the key's
# role for the *other* keys of the command: w, it may be changed; r, what the command does to others
# hangs on it; rw, both. So dirtiness goes from an r to a w, and `w1 w2` are each for itself. That a
# key's new value hangs on its old one needs no letter: it is dirty either way.

cdef enum:
    COMMAND_NAME_MOST = 24        # above the longest of them
    COMMAND_ROWS_MOST = 512
    COMMAND_SLOTS = 1024          # a power of two, well above the count of rows
    KEY_PARTS_MOST = 3
    ALIAS_BYTES_MOST = 64         # of a name that a command has at one of the ends

# What is to be known of a command.
cdef enum CommandFlag:
    FLAG_UNKNOWN = 1 << 0
    FLAG_TTL = 1 << 1
    FLAG_MEMBER_TTL = 1 << 2
    FLAG_MEMBER_COUNT = 1 << 3
    FLAG_READS = 1 << 4
    FLAG_READS_UNNAMED = 1 << 5
    FLAG_WRITES_UNNAMED = 1 << 6
    FLAG_MOVES = 1 << 7
    FLAG_SWAPS = 1 << 8
    FLAG_FLUSHES = 1 << 9
    FLAG_KEYLESS = 1 << 10
    FLAG_PUBLISHES = 1 << 11
    FLAG_SCRIPT = 1 << 12
    FLAG_PLACES = 1 << 13
    FLAG_TIME = 1 << 14
    FLAG_CHANCE = 1 << 15
    FLAG_VERSION = 1 << 16
    FLAG_SETTINGS = 1 << 17
    FLAG_SETS_STRING = 1 << 18
    FLAG_SETS_FIELDS = 1 << 19
    FLAG_CLAIMS = 1 << 20
    FLAG_GROUPS = 1 << 21
    FLAG_MODULE = 1 << 22
    FLAG_CONTAINER = 1 << 23      # of the table alone: the keys are those of its subcommand
    FLAG_PAYLOAD = 1 << 24
    FLAG_PARTS = 1 << 25
    FLAG_SLOT_MOVES = 1 << 26
    FLAG_ACROSS = 1 << 27         # of a command in a batch: it is not sent, see slot_routing.pxi

CMD_UNKNOWN = FLAG_UNKNOWN
CMD_TTL = FLAG_TTL
CMD_MEMBER_TTL = FLAG_MEMBER_TTL
CMD_MEMBER_COUNT = FLAG_MEMBER_COUNT
CMD_READS = FLAG_READS
CMD_READS_UNNAMED = FLAG_READS_UNNAMED
CMD_WRITES_UNNAMED = FLAG_WRITES_UNNAMED
CMD_MOVES = FLAG_MOVES
CMD_SWAPS = FLAG_SWAPS
CMD_FLUSHES = FLAG_FLUSHES
CMD_KEYLESS = FLAG_KEYLESS
CMD_PUBLISHES = FLAG_PUBLISHES
CMD_SCRIPT = FLAG_SCRIPT
CMD_PLACES = FLAG_PLACES
CMD_TIME = FLAG_TIME
CMD_CHANCE = FLAG_CHANCE
CMD_VERSION = FLAG_VERSION
CMD_SETTINGS = FLAG_SETTINGS
CMD_SETS_STRING = FLAG_SETS_STRING
CMD_SETS_FIELDS = FLAG_SETS_FIELDS
CMD_CLAIMS = FLAG_CLAIMS
CMD_GROUPS = FLAG_GROUPS
CMD_MODULE = FLAG_MODULE
CMD_PAYLOAD = FLAG_PAYLOAD
CMD_PARTS = FLAG_PARTS
CMD_SLOT_MOVES = FLAG_SLOT_MOVES
CMD_ACROSS = FLAG_ACROSS

# Commands that the core itself has to tell apart.
cdef enum StreamName:
    NAME_OTHER
    # Taken out of the stream.
    NAME_PING
    NAME_REPLCONF
    NAME_SELECT
    NAME_MULTI
    NAME_EXEC
    NAME_TAKEN_OUT_LAST = NAME_EXEC
    # Kept; they concern databases.
    NAME_SWAPDB
    NAME_COPY
    NAME_MOVE
    # Kept, unless the channel or the reader says otherwise.
    NAME_PUBLISH
    NAME_SPUBLISH
    # Kept; what it does hangs on its database.
    NAME_FLUSHDB
    # Kept; its options stand behind keys and values.
    NAME_MSETEX
    # Kept; `anchor_command` may rewrite them.
    NAME_EXPIRE
    NAME_ANCHORED_FIRST = NAME_EXPIRE
    NAME_PEXPIRE
    NAME_SET
    NAME_SETEX
    NAME_PSETEX
    NAME_GETEX
    NAME_RESTORE
    # Of these the time is absolute, and the options may have to go all the same.
    NAME_EXPIREAT
    NAME_ABSOLUTE_FIRST = NAME_EXPIREAT
    NAME_PEXPIREAT
    NAME_ANCHORED_LAST = NAME_PEXPIREAT

cdef enum KeyForm:
    FORM_RANGE
    FORM_COUNT
    FORM_STREAMS
    FORM_STORE
    FORM_SORT
    FORM_MIGRATE

cdef enum KeyRole:
    ROLE_READ = 1
    ROLE_WRITTEN = 2

cdef struct KeyPart:
    uint8_t form
    uint8_t role
    uint8_t step
    # FORM_RANGE: the first and the last argument, the last counted from the end if it is negative.
    # FORM_COUNT: the argument that says how many. FORM_STORE: where its options begin.
    int16_t first
    int16_t last

cdef struct CommandRow:
    uint32_t flags
    uint8_t stream_name
    uint8_t part_count
    # Whether its hash is its name, and no other's.
    bint hash_is_name
    # Its first argument is its one key, and nothing else of it matters to where it goes.
    bint lone_key
    uint8_t size
    uint8_t name[COMMAND_NAME_MOST]
    KeyPart parts[KEY_PARTS_MOST]

# Row 0 is that of unknown names.
cdef CommandRow COMMAND_ROWS[COMMAND_ROWS_MOST]
cdef size_t command_row_count = 1
# Rows by their names' hash: open addressing, 0 for a free slot.
cdef uint64_t COMMAND_HASHES[COMMAND_SLOTS]
cdef uint16_t COMMAND_PLACES[COMMAND_SLOTS]


cdef inline uint64_t name_word(const uint8_t *p, size_t n) noexcept nogil:
    """Up to eight bytes as a number, letters in lower case.

    Setting 0x20 also folds other bytes together, but none of them onto a lower-case letter.
    """
    cdef uint64_t word = 0
    cdef size_t i
    for i in range(n):
        word |= <uint64_t>(p[i] | 0x20) << (8 * i)
    return word


cdef inline uint64_t name_hash(const uint8_t *p, size_t n) noexcept nogil:
    """Of a name of up to COMMAND_NAME_MOST bytes; of up to eight it is the name itself."""
    cdef uint64_t h
    if n <= 8:
        return name_word(p, n)
    h = name_word(p, 8)
    p += 8
    n -= 8
    while n > 8:
        h = h * <uint64_t>0xD6E8FEB86659FD93 + name_word(p, 8)
        p += 8
        n -= 8
    return h * <uint64_t>0xD6E8FEB86659FD93 + name_word(p, n)


cdef inline size_t name_place(uint64_t h) noexcept nogil:
    return <size_t>((h * <uint64_t>0x9E3779B97F4A7C15) >> 54)


cdef inline bint is_named(const CommandRow *row, const uint8_t *p, size_t n) noexcept nogil:
    """Whether it is the row's name, in any case of letters."""
    cdef size_t i
    cdef uint8_t c
    if row.size != n:
        return False
    for i in range(n):
        c = p[i]
        if 65 <= c <= 90:
            c |= 0x20
        if c != row.name[i]:
            return False
    return True


cdef inline uint16_t named_row(const uint8_t *p, size_t n) noexcept nogil:
    """The number of the row of this name; 0: there is none."""
    cdef uint64_t h
    cdef size_t place
    cdef const CommandRow *row
    if n == 0 or n > COMMAND_NAME_MOST:
        return 0
    h = name_hash(p, n)
    place = name_place(h)
    while COMMAND_PLACES[place]:
        if COMMAND_HASHES[place] == h:
            row = &COMMAND_ROWS[COMMAND_PLACES[place]]
            if (row.hash_is_name and n <= 8) or is_named(row, p, n):
                return COMMAND_PLACES[place]
        place = (place + 1) % COMMAND_SLOTS
    return 0


cdef uint16_t subcommand_row(
    uint16_t container, const uint8_t *p, size_t n
) noexcept nogil:
    """The row of a container's subcommand; 0: it is not known."""
    cdef const CommandRow *row = &COMMAND_ROWS[container]
    cdef uint8_t name[COMMAND_NAME_MOST]
    if row.size + 1 + n > COMMAND_NAME_MOST:
        return 0
    memcpy(name, row.name, row.size)
    name[row.size] = c"|"
    memcpy(name + row.size + 1, p, n)
    return named_row(name, row.size + 1 + n)


cdef tuple COMMAND_FLAG_WORDS = (
    ("ttl", FLAG_TTL),                      # may carry the TTL of keys that it names
    ("member-ttl", FLAG_MEMBER_TTL),        # may set or take away the TTL of a field or member
    ("member-count", FLAG_MEMBER_COUNT),    # counts in a field, which may be one that expired
    ("reads", FLAG_READS),                  # some of its keys have the role r
    ("reads-unnamed", FLAG_READS_UNNAMED),  # may read keys that it does not name
    ("writes-unnamed", FLAG_WRITES_UNNAMED),
    ("moves", FLAG_MOVES),                  # takes a key's TTL along to the last key it changes
    ("swaps", FLAG_SWAPS),
    ("flushes", FLAG_FLUSHES),
    ("keyless", FLAG_KEYLESS),              # what it does is done to no key that it names
    ("publishes", FLAG_PUBLISHES),          # and leaves no data behind
    ("script", FLAG_SCRIPT),
    ("places", FLAG_PLACES),                # stores what a search for places finds
    # What it does hangs on the clock, on chance or the order inside a value, on the version, on
    # the settings or the connection of the server that applies it.
    ("time", FLAG_TIME),
    ("chance", FLAG_CHANCE),
    ("version", FLAG_VERSION),
    ("settings", FLAG_SETTINGS),
    # Some sources send these in place of INCRBYFLOAT and HINCRBYFLOAT, which keep a TTL.
    ("sets-string", FLAG_SETS_STRING),
    ("sets-fields", FLAG_SETS_FIELDS),
    ("claims", FLAG_CLAIMS),                # XCLAIM and XAUTOCLAIM
    ("groups", FLAG_GROUPS),                # changes a stream's consumer groups
    ("module", FLAG_MODULE),
    ("payload", FLAG_PAYLOAD),              # brings a value as DUMP gives it
    ("parts", FLAG_PARTS),                  # comes to the same as several of it, a key each
    ("slot-moves", FLAG_SLOT_MOVES),        # tells of slots that are being moved
    ("container", FLAG_CONTAINER),
)

cdef tuple COMMANDS = (
    # The stream's own.
    ("ping", "", "keyless"),
    ("replconf", "", "keyless"),
    ("select", "", "keyless"),
    ("multi", "", "keyless"),
    ("exec", "", "keyless"),
    # Keys of any type.
    ("copy", "r1 w2", "reads moves"),
    ("del", "w1-*", "parts"),
    ("expire", "w1", "ttl"),
    ("expireat", "w1", "ttl"),
    ("flushall", "", "keyless flushes"),
    ("flushdb", "", "keyless flushes"),
    ("migrate", "migrate", ""),
    ("move", "rw1", "reads moves"),
    ("persist", "w1", ""),
    ("pexpire", "w1", "ttl"),
    ("pexpireat", "w1", "ttl"),
    ("rename", "rw1 w2", "reads moves"),
    # Which of the two it does hangs on whether the second is there.
    ("renamenx", "rw1 rw2", "reads moves"),
    ("restore", "w1", "ttl payload"),
    ("restore-asking", "w1", "ttl payload slot-moves"),
    ("sort", "sort", "reads reads-unnamed"),
    ("swapdb", "", "keyless swaps"),
    ("touch", "w1-*", "parts"),
    ("unlink", "w1-*", "parts"),
    ("bless", "", "container"),
    ("bless|clear", "w2", ""),
    ("bless|set", "w2", ""),
    # Strings.
    ("append", "w1", ""),
    ("bitfield", "w1", ""),
    ("bitop", "w2 r3-*", "reads"),
    ("decr", "w1", ""),
    ("decrby", "w1", ""),
    ("delex", "w1", ""),
    ("delifeq", "w1", ""),
    ("getdel", "w1", ""),
    ("getex", "w1", "ttl"),
    ("getset", "w1", ""),
    ("incr", "w1", ""),
    ("incrby", "w1", ""),
    ("incrbyfloat", "w1", ""),
    ("increx", "w1", "ttl"),
    ("mset", "w1-*/2", "parts"),
    # All of them or none, by what each of them holds: MSETEX with NX or XX, MSETNX always.
    ("msetex", "rw1#/2", "reads ttl parts"),
    ("msetnx", "rw1-*/2", "reads"),
    ("psetex", "w1", "ttl"),
    ("set", "w1", "ttl sets-string"),
    ("setbit", "w1", ""),
    ("setex", "w1", "ttl"),
    ("setnx", "w1", ""),
    ("setrange", "w1", ""),
    # Lists.
    ("blmove", "rw1 w2", "reads"),
    ("blmovem", "rw1 w2", "reads"),
    ("blmpop", "rw2#", "reads"),
    ("blpop", "rw1-^", "reads"),
    ("brpop", "rw1-^", "reads"),
    ("brpoplpush", "rw1 w2", "reads"),
    ("linsert", "w1", ""),
    ("lmove", "rw1 w2", "reads"),
    ("lmovem", "rw1 w2", "reads"),
    ("lmpop", "rw1#", "reads"),
    ("lpop", "w1", ""),
    ("lpush", "w1", ""),
    ("lpushx", "w1", ""),
    ("lrem", "w1", ""),
    ("lset", "w1", ""),
    ("ltrim", "w1", ""),
    ("rpop", "w1", ""),
    ("rpoplpush", "rw1 w2", "reads"),
    ("rpush", "w1", ""),
    ("rpushx", "w1", ""),
    # Sets.
    ("sadd", "w1", ""),
    ("saddex", "w1", "member-ttl"),
    ("sdiffstore", "w1 r2-*", "reads"),
    ("sexpire", "w1", "member-ttl"),
    ("sexpireat", "w1", "member-ttl"),
    ("sinterstore", "w1 r2-*", "reads"),
    ("smove", "rw1 w2", "reads"),
    ("spersist", "w1", "member-ttl"),
    ("spexpire", "w1", "member-ttl"),
    ("spexpireat", "w1", "member-ttl"),
    ("spop", "w1", "chance"),
    ("srem", "w1", ""),
    ("sunionstore", "w1 r2-*", "reads"),
    # Sorted sets, and places in them.
    ("bzmove", "rw1 w2", "reads"),
    ("bzmpop", "rw2#", "reads"),
    ("bzpopmax", "rw1-^", "reads"),
    ("bzpopmin", "rw1-^", "reads"),
    ("geoadd", "w1", ""),
    ("georadius", "r1 store5", "reads places version"),
    ("georadiusbymember", "r1 store5", "reads places version"),
    ("geosearchstore", "w1 r2", "reads places version"),
    ("zadd", "w1", ""),
    ("zdiffstore", "w1 r2#", "reads"),
    ("zincrby", "w1", ""),
    ("zinterstore", "w1 r2#", "reads"),
    ("zmove", "rw1 w2", "reads"),
    ("zmovemember", "rw1 rw2", "reads"),
    ("zmpop", "rw1#", "reads"),
    ("zpopmax", "w1", ""),
    ("zpopmin", "w1", ""),
    ("zrangestore", "w1 r2", "reads"),
    ("zrem", "w1", ""),
    ("zremrangebylex", "w1", ""),
    ("zremrangebyrank", "w1", ""),
    ("zremrangebyscore", "w1", ""),
    ("zunionstore", "w1 r2#", "reads"),
    # Hashes.
    ("hdel", "w1", ""),
    ("hexpire", "w1", "member-ttl"),
    ("hexpireat", "w1", "member-ttl"),
    ("hgetdel", "w1", ""),
    ("hgetex", "w1", "member-ttl"),
    ("himport", "", "container"),
    ("himport|discard", "", "keyless"),
    ("himport|discardall", "", "keyless"),
    ("himport|prepare", "", "keyless"),
    ("himport|set", "w2", "settings"),
    ("hincrby", "w1", "member-count"),
    ("hincrbyfloat", "w1", "member-count"),
    ("hmset", "w1", "sets-fields"),
    ("hpersist", "w1", "member-ttl"),
    ("hpexpire", "w1", "member-ttl"),
    ("hpexpireat", "w1", "member-ttl"),
    ("hset", "w1", "sets-fields"),
    ("hsetex", "w1", "member-ttl"),
    ("hsetnx", "w1", ""),
    # HyperLogLogs: how they are kept hangs on `hll-sparse-max-bytes`.
    ("pfadd", "w1", "settings"),
    ("pfcount", "w1-*", ""),
    ("pfdebug", "w2", ""),
    ("pfmerge", "w1 r2-*", "reads settings"),
    # Streams.
    ("xack", "w1", "groups"),
    ("xackdel", "w1", "groups"),
    ("xadd", "w1", ""),
    ("xautoclaim", "w1", "groups claims version"),
    ("xcfgset", "w1", ""),
    ("xclaim", "w1", "groups claims version"),
    ("xdel", "w1", ""),
    ("xdelex", "w1", "groups"),
    ("xgroup", "w2", "groups"),
    ("xidmprecord", "w1", ""),
    ("xnack", "w1", "groups"),
    ("xreadgroup", "streams", "groups"),
    ("xsetid", "w1", ""),
    ("xtrim", "w1", ""),
    # Arrays, path hashes, vector sets.
    ("ardel", "w1", ""),
    ("ardelrange", "w1", ""),
    ("arinsert", "w1", ""),
    ("armset", "w1", ""),
    ("arring", "w1", ""),
    ("arseek", "w1", ""),
    ("arset", "w1", ""),
    ("phdel", "w1", ""),
    ("phdelprefix", "w1", ""),
    ("phset", "w1", ""),
    # Each server draws the levels of its graph for itself; the vectors are the same.
    ("vadd", "w1", ""),
    ("vrem", "w1", ""),
    ("vsetattr", "w1", ""),
    # Scripts and functions, messages, slots.
    ("eval", "rw2#", "reads reads-unnamed writes-unnamed script"),
    ("evalsha", "rw2#", "reads reads-unnamed writes-unnamed script"),
    ("fcall", "rw2#", "reads reads-unnamed writes-unnamed script"),
    ("function", "", "keyless"),
    ("script", "", "keyless"),
    ("publish", "", "keyless publishes"),
    ("spublish", "", "keyless publishes"),
    ("cluster", "", "container"),
    ("cluster|flushslot", "", "keyless writes-unnamed"),
    # From Valkey 8.0 on a primary tells its replicas who gets a slot.
    ("cluster|setslot", "", "keyless slot-moves"),
    ("cluster|syncslots", "", "keyless writes-unnamed slot-moves"),
    ("sflush", "", "keyless writes-unnamed"),
    ("trimslots", "", "keyless writes-unnamed slot-moves"),
    # RedisJSON and valkey-json.
    ("json.arrappend", "w1", "module"),
    ("json.arrinsert", "w1", "module"),
    ("json.arrpop", "w1", "module"),
    ("json.arrtrim", "w1", "module"),
    ("json.clear", "w1", "module"),
    ("json.del", "w1", "module"),
    ("json.forget", "w1", "module"),
    ("json.merge", "w1", "module"),
    ("json.mset", "w1-*/3", "parts module"),
    ("json.numincrby", "w1", "module"),
    ("json.nummultby", "w1", "module"),
    ("json.numpowby", "w1", "module"),
    ("json.set", "w1", "module"),
    ("json.strappend", "w1", "module"),
    ("json.toggle", "w1", "module"),
    # RedisTimeSeries: a rule makes a sample of one series change others.
    ("ts.add", "w1", "writes-unnamed module"),
    ("ts.alter", "w1", "module"),
    ("ts.create", "w1", "module"),
    ("ts.createrule", "rw1 rw2", "reads module"),
    ("ts.decrby", "w1", "time writes-unnamed module"),
    ("ts.del", "w1", "writes-unnamed module"),
    ("ts.deleterule", "rw1 rw2", "reads module"),
    ("ts.incrby", "w1", "time writes-unnamed module"),
    ("ts.madd", "w1-*/3", "writes-unnamed parts module"),
    # RedisBloom and valkey-bloom.
    ("bf.add", "w1", "module"),
    ("bf.insert", "w1", "module"),
    ("bf.load", "w1", "module"),
    ("bf.loadchunk", "w1", "module"),
    ("bf.madd", "w1", "module"),
    ("bf.reserve", "w1", "module"),
    ("cf.add", "w1", "module"),
    ("cf.addnx", "w1", "module"),
    ("cf.compact", "w1", "module"),
    ("cf.del", "w1", "module"),
    ("cf.insert", "w1", "module"),
    ("cf.insertnx", "w1", "module"),
    ("cf.loadchunk", "w1", "module"),
    ("cf.reserve", "w1", "module"),
    ("cms.incrby", "w1", "module"),
    ("cms.initbydim", "w1", "module"),
    ("cms.initbyprob", "w1", "module"),
    ("cms.merge", "w1 r2#", "reads module"),
    ("tdigest.add", "w1", "module"),
    ("tdigest.create", "w1", "module"),
    ("tdigest.merge", "w1 r2#", "reads module"),
    ("tdigest.reset", "w1", "module"),
    ("topk.add", "w1", "chance module"),
    ("topk.count", "w1", "module"),  # says that it writes, and replicates nothing
    ("topk.incrby", "w1", "chance module"),
    ("topk.reserve", "w1", "module"),
    # RediSearch and valkey-search.
    ("_ft.config", "", "keyless module"),
    ("ft._aliasaddifnx", "", "keyless module"),
    ("ft._aliasdelifx", "", "keyless module"),
    ("ft._alterifnx", "", "keyless module"),
    ("ft._createifnx", "", "keyless module"),
    ("ft._dropifx", "", "keyless writes-unnamed module"),
    ("ft._dropindexifx", "", "keyless writes-unnamed module"),
    ("ft.add", "w2", "module"),
    ("ft.aliasadd", "", "keyless module"),
    ("ft.aliasdel", "", "keyless module"),
    ("ft.aliasupdate", "", "keyless module"),
    ("ft.alter", "", "keyless module"),
    ("ft.config", "", "keyless module"),
    ("ft.create", "", "keyless module"),
    ("ft.del", "w2", "module"),
    ("ft.dictadd", "", "keyless module"),
    ("ft.dictdel", "", "keyless module"),
    ("ft.drop", "", "keyless writes-unnamed module"),
    ("ft.dropindex", "", "keyless writes-unnamed module"),
    ("ft.internal_update", "", "keyless module"),
    ("ft.safeadd", "w2", "module"),
    ("ft.sugadd", "w1", "module"),
    ("ft.sugdel", "w1", "module"),
    ("ft.synadd", "", "keyless module"),
    ("ft.synupdate", "", "keyless module"),
    # FalkorDB, and RedisGraph before it.
    ("graph.bulk", "w1", "writes-unnamed module"),
    ("graph.constraint", "w2", "module"),
    ("graph.copy", "r1 w2", "reads module"),
    ("graph.delete", "w1", "writes-unnamed module"),
    ("graph.effect", "w1", "writes-unnamed module"),
    ("graph.explain", "w1", "module"),
    ("graph.password", "", "keyless module"),
    ("graph.profile", "w1", "time chance writes-unnamed module"),
    ("graph.query", "w1", "time chance writes-unnamed module"),
    ("graph.restore", "w1", "module"),
    ("graph.udf", "", "keyless module"),
)

cdef dict STREAM_NAMES = {
    "ping": NAME_PING, "replconf": NAME_REPLCONF, "select": NAME_SELECT, "multi": NAME_MULTI,
    "exec": NAME_EXEC, "swapdb": NAME_SWAPDB, "copy": NAME_COPY, "move": NAME_MOVE,
    "msetex": NAME_MSETEX, "publish": NAME_PUBLISH, "spublish": NAME_SPUBLISH,
    "expire": NAME_EXPIRE, "pexpire": NAME_PEXPIRE, "set": NAME_SET, "setex": NAME_SETEX,
    "psetex": NAME_PSETEX, "getex": NAME_GETEX, "restore": NAME_RESTORE,
    "restore-asking": NAME_RESTORE, "expireat": NAME_EXPIREAT, "pexpireat": NAME_PEXPIREAT,
    "flushdb": NAME_FLUSHDB,
}


cdef KeyPart key_part(str text) except *:
    """A part of a row's keys, from its notation."""
    cdef KeyPart part
    memset(&part, 0, sizeof(KeyPart))
    part.step = 1
    if text == "streams":
        part.form, part.role = FORM_STREAMS, ROLE_WRITTEN
        return part
    if text == "migrate":
        part.form, part.role = FORM_MIGRATE, ROLE_WRITTEN
        return part
    if text == "sort":
        part.form, part.role, part.first = FORM_SORT, ROLE_WRITTEN, 2
        return part
    if text.startswith("store"):
        part.form, part.role, part.first = FORM_STORE, ROLE_WRITTEN, int(text[5:])
        return part
    places = text.lstrip("rw")
    letters = text[: len(text) - len(places)]
    part.role = (ROLE_READ if "r" in letters else 0) | (ROLE_WRITTEN if "w" in letters else 0)
    places, _, step = places.partition("/")
    if step:
        part.step = int(step)
    if places.endswith("#"):
        part.form, part.first = FORM_COUNT, int(places.removesuffix("#"))
        return part
    first, dash, last = places.partition("-")
    part.form, part.first = FORM_RANGE, int(first)
    part.last = part.first if not dash else -1 if last == "*" else -2
    return part


cdef add_command(str name, str keys, str flags):
    global command_row_count
    cdef CommandRow *row
    cdef bytes spelled = name.encode()
    cdef uint64_t h
    cdef size_t place, i
    if command_row_count == COMMAND_ROWS_MOST or len(spelled) > COMMAND_NAME_MOST:
        raise RuntimeError(f"no room for the command {name}")
    row = &COMMAND_ROWS[command_row_count]
    memcpy(row.name, PyBytes_AS_STRING(spelled), len(spelled))
    row.size = <uint8_t>len(spelled)
    row.hash_is_name = len(spelled) <= 8 and spelled.isalpha()
    row.stream_name = STREAM_NAMES.get(name, NAME_OTHER)
    known = dict(COMMAND_FLAG_WORDS)
    for word in flags.split():
        row.flags |= known[word]
    parts = keys.split()
    if "sort" in keys:
        # What it sorts, and where it stores it.
        parts = ["r1", "sort"]
    for i, part in enumerate(parts):
        row.parts[i] = key_part(part)
    row.part_count = <uint8_t>len(parts)
    row.lone_key = parts == ["w1"] and not row.flags & (FLAG_SLOT_MOVES | FLAG_SCRIPT)
    h = name_hash(row.name, row.size)
    place = name_place(h)
    while COMMAND_PLACES[place]:
        place = (place + 1) % COMMAND_SLOTS
    COMMAND_HASHES[place] = h
    COMMAND_PLACES[place] = <uint16_t>command_row_count
    command_row_count += 1


cdef add_commands():
    COMMAND_ROWS[0].flags = FLAG_UNKNOWN
    for name, keys, flags in COMMANDS:
        add_command(name, keys, flags)


add_commands()


def command_flags(name not None, subcommand=b""):
    """What the table says of a command: a sum of the flags CMD_…, CMD_UNKNOWN for a name without
    a row.

    name, subcommand: bytes, in any case of letters; the second matters where the subcommands of a
    container differ (HIMPORT, BLESS). TypeError for anything else.
    """
    cdef uint16_t row
    if not PyBytes_CheckExact(name) or not PyBytes_CheckExact(subcommand):
        raise TypeError("a command's name must be bytes")
    row = named_row(<const uint8_t *>PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name))
    if COMMAND_ROWS[row].flags & FLAG_CONTAINER:
        row = subcommand_row(
            row, <const uint8_t *>PyBytes_AS_STRING(subcommand), PyBytes_GET_SIZE(subcommand))
    return COMMAND_ROWS[row].flags
