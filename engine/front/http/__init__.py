"""The HTTP face: ElastiCache's Query protocol over the front's operations.

One file for each reason to change: the model's shapes (`model`), what comes in (`query`), what
goes out (`xml`), the caller (`sigv4`, `throttle`), what can be asked (`actions`), and the server.
"""
