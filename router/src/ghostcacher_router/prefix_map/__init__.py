"""What the fleet has learned of how text becomes engine blocks, without ever tokenising.

text_map.py   boundary of a text -> (number of blocks, hash of the last): what is known, learned, told by others
lesson.py     one prompt and the chain that an engine made of it -> what there is to learn; pure
recent.py     a bounded store that forgets what was not used for long
pending.py    prompts that were sent, until an engine tells their chains
"""

from ghostcacher_router.prefix_map.pending_prompts import Pending
from ghostcacher_router.prefix_map.prefix_map import KnownBoundary, TextMap

__all__ = ["KnownBoundary", "Pending", "TextMap"]
