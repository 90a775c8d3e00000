"""The HTTP proxy: streams HTTP/1.1 between clients and workers, on uvloop and llhttp. No policy.

    proxy.py              HttpProxy: listens, ticks, stops
    proxy_state.py        ProxyState: what all connections share
    proxy_ports.py        what these parts ask of one another, and of the rest of the router
    open_files.py         how many clients the process may have
    rare_lines.py         RareLines: keeps the log short when the same thing happens with each request

    clients/
    client_connection.py  ClientConnection: one client's connection, one request at a time
    client_time.py        TimedConnection: what is done when a client, or its answer, takes too long
    client_ends.py        EndingConnection: how a client's connection ends
    client_state.py       its states, and what it refuses by itself
    peer_state.py         what the kernel knows of a client's connection: has it left, what has arrived; its reset
    admission.py          which clients may be connected, and who goes when there are too many
    reading_turns.py      ReadingTurns: long bodies are read in turns

    exchanges/
    worker_exchange.py    WorkerExchange: the main path of a request: parsed, placed, sent, answered
    request_retries.py    RetriedRequest: what is done when one worker gives no answer
    request_ends.py       EndingRequest: what a request holds, and how it ends without a whole answer
    attempts.py           Attempts: which workers have been tried for a request, and whose fault it was
    repeatable.py         is_repeatable: which requests two workers may carry out
    taps.py               what is read along in answers: the id of what was made, and where output begins
    own_headers.py        the header lines that the router adds to a response
    later.py              goes on with a request once something is there that it waits for
    provider_exchange.py  ProviderExchange: a request that may go to a hosted provider instead
    websocket_exchange.py WebSocketExchange: a request to switch to WebSocket, and what follows
    local_exchange.py     LocalExchange: a request that the router answers itself
    fan_out.py            a request that goes to every server, where the client asks for that

    protocol/             heads, bodies, framing, limits and errors of HTTP: no I/O
    ../upstreams/         connections to workers

The life of a request:

1. bytes come from a client (`ClientConnection.data_received`)
2. its head is gathered and checked (`HeadReader`, `read_request_head`), its body held whole (`BodyReader`)
3. the body is parsed (`parsing.BodyParser`, at once or in another process) and the request placed (`Dispatcher`)
4. a connection to that worker is taken or made (`WorkerPool.take`, `Pools.connect`)
5. the head is written anew (`worker_request`) and sent with the body (`WorkerConnection.begin`)
6. the head of the worker's response is checked (`ResponseHeads.parse`) and written anew (`client_head`)
7. its body is passed on byte for byte, while llhttp looks for its end (`ResponseReader.feed`, `ChunkedEnd.feed`)
8. the worker's connection is kept (`WorkerPool.put`), and the client's next request is read

Nothing is imported here, so that upstreams/ can use protocol/ without the rest.
"""
