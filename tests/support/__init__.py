"""What the tests share: servers, migrations, writers, waiting, comparing. A file a thing.

Nothing is imported here: a test names the file that it needs.
"""
