"""Connections to workers, kept for the next request.

    worker_pools.py       Pools: a pool of connections for each endpoint; makes connections, keeps and closes them
    worker_connection.py  WorkerConnection: writes a request, and has its response read
    acknowledgement.py    outstanding: what of a request has not arrived at the worker's host
    response_reader.py    ResponseReader: finds head, body and end of a response, and passes them on as they come
    response_receiver.py  ResponseReceiver: the port of whoever gets a response

This room knows heads and framing (http/protocol), but nothing of the clients whose requests it sends.
"""
