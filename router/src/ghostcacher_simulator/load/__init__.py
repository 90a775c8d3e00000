"""Loads: the requests of a simulation, read from a trace or made.

requests.py      a request, a load, and how rows become both
trace_lines.py   what one line of each format says
access_lines.py  what a line of a router's log says
trace_files.py   a file as a load; errors name the line and the column
generated.py     documents, conversations, agents and RAG, made at random from a seed
"""
