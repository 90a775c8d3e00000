"""Has bodies parsed: short ones at once, long ones in a process of their own, so that nobody waits for them.

parser.py           BodyParser: which way a body goes
parser_process.py   ParserProcess: one child process, and one body at a time in it
parser_main.py      the child's program
messages.py         what is sent there and back

Decoding JSON holds Python's lock, in whichever thread it runs. A thread of the router's only writes to the child and
waits for it, which holds nothing.
"""
