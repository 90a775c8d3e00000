"""Who belongs to the fleet: leases in Redis and static URLs, and who has left."""
