"""What benchmarks/router_proxy.py measures with: mock engines and a load generator in C, and the proxies themselves.

Core 0 has the proxy and nothing else; core 1 has the mock engines, the load and Redis.
"""
