"""The front: a streaming HTTP/1.1 proxy between clients and workers, on uvloop and llhttp. No policy.

    front.py       Front: listens, ticks, stops; what all connections share
    client.py      one client's connection: heads and bodies in, one request at a time
    exchange.py    one request's life at the workers: parse, place, send, answer, retry
    own.py         the same for what the router answers itself
    upstream.py    one connection to a worker: a request out, its answer straight on to the client
    pool.py        connections to workers kept for the next request
    head.py answers.py intake.py framing.py    what is read and written, and how it is gathered: no I/O
    errors.py limits.py ports.py       errors as clients expect them, every bound, what the parts ask of one another

The life of a request: bytes come (client) -> head checked (head) -> body held whole (intake) -> parsed and placed
(exchange, through the ports in types.py) -> head built anew and written with the body (exchange, upstream) -> the
worker's head checked and built anew (answers) -> its body passed on byte for byte, while llhttp looks for the end
(upstream, framing) -> the worker's connection kept (pool), the client's next request (client).
"""

from ghostcacher_router.http.limits import Limits
from ghostcacher_router.http.proxy import Front

__all__ = ["Front", "Limits"]
