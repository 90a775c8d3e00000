"""GhostCacher's connector: shares the paged KV caches of a fleet of engines."""

__version__ = "0.1.0"
