"""The native core: parsing, hashing, encoding and reply counting on memory of its own.

One compilation unit. The parts are included in the order of their dependence; none of them knows
what a socket is. Cython's directives are in setup.py, because they depend on the build's mode.
"""

cimport cython
from cpython.buffer cimport (
    PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
)
from cpython.bytes cimport (
    PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
)
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree, PyMem_RawMalloc, PyMem_RawRealloc
from libc.stdint cimport (
    INT32_MAX, INT64_MAX, INT64_MIN, SIZE_MAX, UINT32_MAX, int8_t, int16_t, int32_t, int64_t, uint8_t,
    uint16_t, uint32_t, uint64_t
)
from libc.stdlib cimport qsort
from libc.string cimport memchr, memcmp, memcpy, memmove, memset, strlen
from posix.unistd cimport read
from posix.time cimport CLOCK_REALTIME, clock_gettime, timespec

import array
import collections
import os

include "consts.pxi"
include "hash.pxi"
include "slot_filter.pxi"
include "digest.pxi"
include "commands.pxi"
include "resp.pxi"
include "buffer.pxi"
include "batch.pxi"
include "strings.pxi"
include "modules.pxi"
include "keys.pxi"
include "key_rules.pxi"
include "key_filter.pxi"
include "scan_requests.pxi"
include "scan_without_ttls.pxi"
include "scan.pxi"
include "restore.pxi"
include "rdb_format.pxi"
include "rdb_walk.pxi"
include "rdb_string_reader.pxi"
include "field_ttls.pxi"
include "value_sink.pxi"
include "value_packed.pxi"
include "value_stream.pxi"
include "value_memory.pxi"
include "value_decoder.pxi"
include "value_totals.pxi"
include "template_hashes.pxi"
include "value_encode.pxi"
include "value_repack.pxi"
include "stream_commands.pxi"
include "value_commands.pxi"
include "rdb.pxi"
include "seen_keys.pxi"
include "receive_times.pxi"
include "command_table.pxi"
include "file_bytes.pxi"
include "packed_commands.pxi"
include "wanted_keys.pxi"
include "command_keys.pxi"
include "unfaithful_commands.pxi"
include "command_batch.pxi"
include "keys_named_in_stream.pxi"
include "absolute_ttls.pxi"
include "extended_names.pxi"
include "aof.pxi"
include "slot_routing.pxi"
include "newer_commands.pxi"
include "stream.pxi"
include "apply.pxi"
include "apply_replies.pxi"
include "position_records.pxi"
include "pump.pxi"
include "name_pages.pxi"
include "raw_replies.pxi"
include "key_looks.pxi"
