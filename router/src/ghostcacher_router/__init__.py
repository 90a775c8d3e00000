"""GhostCacher's router: sends each request to the worker where it costs least. Imports no engine, torch or NIXL."""
