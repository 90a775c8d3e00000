"""From the body of a request to what routing needs of it: the sections of the prompt, hashed and never tokenised.

parse.py            turns a body into a RequestShape, with one function for each kind of API
prompts.py          makes the prompt of a decoded body
bodies.py           names the fields that are read, and says how wrong ones are reported
decoding.py         decodes bodies strictly, and where that fails as leniently as engines do
structure.py        counts values and levels of JSON without decoding it
assembly.py         joins messages, parts, tools and documents to canonical bytes, divided into sections
model_name.py       reads the model that a form or the query names
stored_ids.py       finds which stored object a request needs
named_sections.py   reads how a request itself names the sections that its messages belong to
transfers.py        finds what names another engine
retention.py        reads for how long a client wants a part of its prompt to be kept
canonical.py        gives one form to JSON whose white space and key order no template sees
known_chats.py      remembers how chats begin, so that what many bodies have in common is read once
chat_begin.py       goes on from a known beginning to the prompt of the whole
boundaries.py       places boundaries in the canonical bytes and hashes them
"""

from ghostcacher_router.prompt.assembly import Reading
from ghostcacher_router.prompt.bodies import BadBody
from ghostcacher_router.prompt.boundaries import PromptText
from ghostcacher_router.prompt.canonical import TooMuch
from ghostcacher_router.prompt.parse import (
    PROMPT_PATHS,
    parse_body,
    parse_head,
    parse_now,
    read_prompt,
    shape_by_method,
)
from ghostcacher_router.prompt.transfers import not_from_clients

__all__ = [
    "PROMPT_PATHS",
    "BadBody",
    "PromptText",
    "Reading",
    "TooMuch",
    "not_from_clients",
    "parse_body",
    "parse_head",
    "parse_now",
    "read_prompt",
    "shape_by_method",
]
