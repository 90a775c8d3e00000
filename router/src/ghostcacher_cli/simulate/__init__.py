"""`ghostcacher simulate`: a load through a fleet in virtual time. Touches no engine, no Redis and no network.

arguments.py      the command line
fleets.py         what its options say of a fleet
slo.py            how many workers are enough
results.py        what came of a run, as JSON has it
results_text.py   the same as text
pictures.py       the same as a picture
run.py            all of it together
"""
