"""A request while it is answered: by a worker, by every server, or by the router itself."""
