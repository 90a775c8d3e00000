"""From the body of a request to what routing needs of it: the prompt's typed blocks, hashed, never tokenised.

parse.py        body -> RequestShape: one function a kind of API
bodies.py       the fields that are read, and how wrong ones are reported
assembly.py     messages, parts, tools and documents -> canonical bytes with typed blocks
naming.py       how a request names the types of its messages itself
canonical.py    one form for JSON whose white space or key order no template sees
boundaries.py   canonical bytes -> boundaries and their digests
"""

from ghostcacher_router.prompt.bodies import BadBody
from ghostcacher_router.prompt.parse import parse_body

__all__ = ["BadBody", "parse_body"]
