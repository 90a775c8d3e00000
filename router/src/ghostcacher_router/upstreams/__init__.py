"""Connections to workers, kept for the next request.

    pool.py             Pools: one pool of connections for each endpoint; makes connections, keeps them, closes them
    connection.py       WorkerConnection: writes a request, has its response read
    response_reader.py  ResponseReader: finds head, body and end of a response and passes them on as they come
    ports.py            ResponseReceiver: who gets a response

This room knows heads and framing (http/protocol), but nothing of the clients whose requests it sends.
"""
