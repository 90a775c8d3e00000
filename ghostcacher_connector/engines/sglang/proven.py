"""What the adapter is proven on. Imports nothing: every process of SGLang loads it."""

DISTRIBUTIONS = ("sglang",)

PROVEN_VERSIONS = ("0.5.23",)
"""Versions on which the e2e suite passes. Patch releases of SGLang change its scheduler: each is proven anew."""
