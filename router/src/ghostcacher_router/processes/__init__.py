"""One router in several processes: the same address, one supervisor, and children that are whole routers.

    supervisor --starts, watches, replaces--> child of slot 0 .. N-1 <-- clients, through a socket of each slot
        '--starts, watches--> feed --unix socket--'^
                                                   '--unix sockets--> siblings: metrics and the admin API of all

listeners.py     the sockets of all slots, which the supervisor keeps
seat.py          what a child is told, and what it shares the router's limits by
child.py         a child, as the supervisor sees it
control_lines.py the lines that both tell each other, as they are read
feed.py          the process that reads Redis for all of them
supervisor.py    all of them: started, kept, replaced one by one, ended
membership.py    the supervisor and the siblings, as a child sees them
program.py       a child, or the feed, as a program
siblings.py      questions among children
merging.py       what many children say of themselves, as one router says it
ended_counts.py  what children had counted that have ended
ended_history.py how these had fared
whole_router.py  answers of the admin API for all children

The socket of a slot outlives its child: connections that wait in its queue are for the next one. While a slot has no
child, another one's accepts for it.
"""
