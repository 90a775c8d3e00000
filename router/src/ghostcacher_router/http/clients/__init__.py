"""A client's connection: which are let in, what comes on them, how each ends."""
