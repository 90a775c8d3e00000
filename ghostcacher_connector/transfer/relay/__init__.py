"""Pulls over plain TCP, through a process beside the engine, for hosts that share neither memory nor RDMA.

    engine's rank  <--READ, same host--  relay process  <--TCP--  reader's rank

The relay is a reader like any other: it works while the engine is busy or stopped, and its death hurts nobody. It
judges nothing: after each chunk of data it passes on the seal as it read it *after* the data, and the reader at the
far end compares. Mutual authentication by a shared token (HMAC-SHA256 over nonces; the token is never sent). Bytes
are not encrypted: use a private network or a tunnel.

wire.py: frames and the handshake. server.py: the relay. process.py: starts and supervises it. client.py: the reader.
"""
