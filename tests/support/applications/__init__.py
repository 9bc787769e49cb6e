"""Applications of other libraries at their defaults: a loop of INCR, a BLPOP, a subscriber.

Each is a program that is given a port, and prints a line for what happens:

    ack N       N increments are acknowledged
    popped X    BLPOP took X from `queue`
    heard X     X was published in `channel`

What fails is tried again by the library's own means alone; a call that raises is not repeated.
"""
