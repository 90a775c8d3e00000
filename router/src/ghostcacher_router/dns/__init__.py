"""From the host name of a worker to a connection: names that do not resolve hold up nobody else.

resolver.py  Resolver: addresses of names, looked up in threads of its own, kept while they cannot be looked up
dial.py      dial: connects to the first of a host's addresses that answers
"""
