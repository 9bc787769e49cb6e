"""One file per rival, behind one interface: see `base`; `registry` lists them."""
