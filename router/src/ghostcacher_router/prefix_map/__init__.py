"""What the fleet knows of how text becomes KV blocks, learned without ever tokenising.

prefix_map.py             maps a boundary of a text to the number of blocks before it and the chain hash of the last one
map_update.py             works out what one prompt and the chain that an engine made of it change in the map; pure
two_generation_cache.py   holds the entries of the map, and forgets those that were not used for long
pending_prompts.py        keeps prompts that were sent until an engine reports their chains
early_chains.py           keeps chains under ids that engines made, until an answer tells whose they are
"""

from ghostcacher_router.prefix_map.early_chains import ENGINE_ID, EarlyChains
from ghostcacher_router.prefix_map.pending_prompts import PendingPrompts
from ghostcacher_router.prefix_map.prefix_map import KnownBoundary, PrefixMap, entries_of

__all__ = ["ENGINE_ID", "EarlyChains", "KnownBoundary", "PendingPrompts", "PrefixMap", "entries_of"]
