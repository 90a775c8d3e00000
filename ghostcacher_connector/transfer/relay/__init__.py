"""Pulls over plain TCP, through a process beside the engine, for hosts that share neither memory nor RDMA.

    engine's rank  <--READ, same host--  relay process  <--TCP--  reader's rank

The relay is a reader like any other: it works while the engine is busy or stopped, and its death harms nobody. It
judges nothing: after the rows of each chunk it passes on the seal, which it READ *after* them, and the reader at the
far end checks it. Both ends prove that they know a shared token (HMAC-SHA256 over nonces) without sending it. Bytes are
not encrypted: use a private network or a tunnel.

wire.py: frames and the handshake. server.py: the relay. process.py: starts and supervises it. relay_transport.py: the
reader's side. sinks.py: where the reader puts the rows.
"""
