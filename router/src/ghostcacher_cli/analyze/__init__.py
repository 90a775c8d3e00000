"""`ghostcacher analyze`: what a cache could save of a file of requests. Touches no cache and no network.

arguments.py         the command line
formats.py           which kinds of lines there are, and what one says
traces.py            a file as sequences of blocks
stack_distance.py    what LRU caches of all sizes hit, exactly
policy_curves.py     what caches of other policies hit, run at each size
shared_prefixes.py   the tree of what requests share
previews.py          how a block begins, for people
send_order.py        the best order to send the requests in
worth.py             bytes and seconds
report.py            what is found, as JSON has it
report_text.py       the same as text
charts.py            the same as drawings
run.py               all of it together
"""
