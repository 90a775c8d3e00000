"""What is put into bodies, so that the caches of providers work."""
