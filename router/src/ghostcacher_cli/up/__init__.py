"""`ghostcacher up`: engines, a Redis and a router on this machine, started, watched and stopped together."""
