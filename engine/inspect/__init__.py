"""What a file or a server holds, key by key: types, encodings, sizes, TTLs, values. Rank 4."""
