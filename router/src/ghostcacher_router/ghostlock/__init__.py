"""A *ghost lock* is a single-flight lease on a cold prefix: while one worker computes it, no other one does.

ghost_lock      one such lease
lock_table      the leases that this router knows of, by the boundaries that they cover
sibling_locks   the leases of all processes of one router, in memory that they share
single_flight   how processes and routers agree on leases: take, confirm, renew, release, take over
unlocks         releases them in the store
followers       what a request does that encounters a lease of another request
"""
