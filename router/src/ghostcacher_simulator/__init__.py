"""Simulated engines: what a real one does with prompts, KV blocks and peers, without a model.

One `Engine` serves at three levels:

- *HTTP server*: `EngineServer` with `EngineApi` answers as an OpenAI-compatible engine does, or as badly as it is told
  to (``python -m ghostcacher_simulator`` is that as a program);
- *connector*: `Connector` enters its worker into a block index and a coordination store, real ones in Redis or those in
  memory, and publishes, withdraws and reports as a connector does;
- *virtual time*: on the loop of `virtual_time` minutes of a whole fleet pass in milliseconds, and always alike.

    request -> Engine: queue -> prefix match in KvPool, at peers -> pull, prefill -> decode -> release
                                      |                                  |
                               evicted blocks                   computed blocks, load
                                      '---------> Sharing (Connector) <--'---> index, coordination store

Simulated: the prefill of one prompt at a time at a fixed rate, decoding at a fixed time a token, a KV pool of a fixed
size with LRU eviction, pulls at a fixed rate. A `BatchingEngine` batches continuously as real ones do: prompts in
chunks, answers in the same steps, pulls beside them. Not simulated: preemption.
"""
