"""GhostCacher's connector: shares the paged KV caches of a fleet of engines."""
