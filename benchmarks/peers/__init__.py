"""Other projects' caches below the same engines, for comparing tiers: LMCache, Mooncake's store, vLLM's own offloading.

Their packages want versions that ours do not, so they go into an environment of their own that shares vLLM, torch and
all that is there already with the benchmark's; the benchmark is told its Python (``--peer-python``):

    python3.11 -m venv --without-pip PEERS
    echo $PWD/.venv/lib/python3.11/site-packages > PEERS/lib/python3.11/site-packages/shared.pth
    PEERS/bin/python -m pip install --no-deps lmcache==0.5.6 mooncake-transfer-engine-non-cuda==0.3.13.post1
    PEERS/bin/python -m pip install --no-deps aiofile aiofiles caio msgpack opentelemetry-exporter-prometheus

These are all that importing them on CPUs takes. Mooncake also links the system's libibverbs (Debian: libibverbs1) and
uses none of it here. Engines of every way run the same vLLM and torch.

How each is set up, and how it gets the same bytes as the host tier, stands in peer_engines.py.
"""
