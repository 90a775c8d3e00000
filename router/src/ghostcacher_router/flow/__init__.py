"""Flow control: requests wait in the router, in an order of its own, while no worker has room for them.

Off by default. `FlowControl` stands before the picker, as the Dispatcher that the HTTP proxy asks; `FairQueue` is the
order, `WorkerRooms` says who has room, `wishes.py` reads what a client asks for.
"""
