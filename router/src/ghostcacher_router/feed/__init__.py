"""What routers and workers tell each other through Redis, read once for all processes of a router.

    Redis --read--> FeedServer, a process of its own --unix socket--> Subscription of each process --> sync.RouterSync

messages.py       what the processes are told
folding.py        makes that of what was read: checked, merged, and without what a process rarely needs
server.py         reads, and tells all that listen
subscription.py   listens, in a process that serves

A process that has no feed, or loses it, reads Redis itself, from where the feed has stopped, and joins again when it
can. No item is left out on the way from one to the other; one that comes twice changes nothing.
"""
