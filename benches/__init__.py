"""Keys per second: data sets, one adapter per rival, and the report that compares them."""
