"""A *ghost lock* is a single-flight lease on a cold prefix: while one worker computes it, no other one does.

ghost_lock      one such lease
lock_table      the leases that this router knows of, by the boundaries that they cover
single_flight   how the routers agree on leases through the store: take, confirm, renew, release, take over
followers       what a request does that encounters a lease of another request
"""
