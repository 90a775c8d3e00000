"""A whole fleet in virtual time: simulated engines, and the router's own routing over them.

host_blocks.py   the host tier of a worker, which the connectors' own retention code keeps
objects.py       the object tier behind all of them
stores.py        what workers and routers share
workers.py       an engine with its connector, its tier and its links
fleet_view.py    the workers as one router knows them
routers.py       the routing of one router, without its front
policies.py      ways to choose a worker: the project's routers, and simple ones to compare them with
replay.py        one run: a load through a policy at a fleet
failures.py      what fails in a run, as a script
invariants.py    what must hold at each step of it
watched.py       a run with failures, watched
"""
