"""`verify`: every key of one deployment held against another one.

Rank 4, and a stranger to `transfer` and to what reads for it: it asks both ends by itself, and has
the core compare what they say (`ext/key_looks.pxi`). Begin with `engine.proof.run`.
"""
