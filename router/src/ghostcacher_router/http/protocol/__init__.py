"""HTTP/1.1 as bytes: what is read from clients and workers, and what is written to them. No I/O, no tasks, no clock.

    request_reader.py  RequestReader: gathers one client's requests from the pieces in which they come
    request_head.py    RequestHead: parsed and checked; `worker_request` writes it anew for a worker
    response_head.py   ResponseHead: parsed and checked; `client_head` writes it anew for a client
    framing.py         where a chunked body ends, and what it holds
    headers.py         what heads of both kinds have in common
    local_response.py  what the router answers itself, without a worker
    refusal.py         Refusal: a request that the router answers with an error
    limits.py          every limit, with its reason

Both sides of the proxy use it: the clients' (http/) and the workers' (upstreams/).
"""
