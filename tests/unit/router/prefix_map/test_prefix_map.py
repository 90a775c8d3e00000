"""What the prefix map learns of a prompt, what it takes over from other routers, and what it forgets."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostcacher_connector.core.coordination.base import Flush, PrefixMapUpdate, PromptChain
from ghostcacher_router.prefix_map import PrefixMap
from ghostcacher_router.types import Prompt
from tests.support.prompt_segments import Segment, make_chain, make_prompt

NAMESPACE = "ns"
SYSTEM = Segment(0, 4096, 1024)
DOCUMENT = Segment(1, 20_000, 5_000)


def question(name: int, size: int = 400, tokens: int = 100) -> Segment:
    return Segment(1000 + name, size, tokens)


def teach(prefixes: PrefixMap, *segments: Segment, before: int = 0, date: int = 0) -> PrefixMapUpdate | None:
    return prefixes.learn(make_prompt(segments), make_chain(segments, before=before, date=date), NAMESPACE)


def deepest(prefixes: PrefixMap, *segments: Segment) -> int:
    known = prefixes.known(NAMESPACE, make_prompt(segments))
    return known[-1].block_count if known else 0


def contents(prefixes: PrefixMap, prompts: list[Prompt]) -> list[list[tuple[int, int, bytes]]]:
    found = [prefixes.known(NAMESPACE, prompt) for prompt in prompts]
    return [[(known.index, known.block_count, known.block_hash) for known in one] for one in found]


def test_nothing_is_known_of_a_new_text() -> None:
    """A miss is an empty list."""
    assert PrefixMap("r").known(NAMESPACE, make_prompt([SYSTEM])) == []


def test_shared_text_is_known_with_its_blocks() -> None:
    """Another question on the same document resolves to nearly all of the document's blocks."""
    prefixes = PrefixMap("r")
    assert teach(prefixes, SYSTEM, DOCUMENT, question(1)) is not None
    assert (1024 + 5000) // 16 - 8 <= deepest(prefixes, SYSTEM, DOCUMENT, question(2)) <= (1024 + 5000) // 16


def test_known_boundaries_ascend_and_are_of_the_chain() -> None:
    """They are a sparse chain, fit to be looked up as it is."""
    prefixes, segments = PrefixMap("r"), [SYSTEM, DOCUMENT, question(1)]
    teach(prefixes, *segments)
    chain, prompt = make_chain(segments), make_prompt(segments)
    found = prefixes.known(NAMESPACE, prompt)
    counts = [known.block_count for known in found]
    assert counts == sorted(set(counts))
    assert [known.block_hash for known in found] == [chain.hashes[chain.block_counts.index(n)] for n in counts]


def test_next_turn_is_known_to_the_end_of_the_last() -> None:
    """A conversation that grows finds all blocks of the turn before."""
    prefixes = PrefixMap("r")
    teach(prefixes, SYSTEM, question(1, 2000, 500))
    assert deepest(prefixes, SYSTEM, question(1, 2000, 500), question(2, 900, 200)) == (1024 + 500) // 16


def test_hot_prefix_costs_nothing_after_the_first_time() -> None:
    """What is known and true is neither shared nor written again."""
    prefixes = PrefixMap("r")
    first = teach(prefixes, SYSTEM, DOCUMENT, question(1))
    second = teach(prefixes, SYSTEM, DOCUMENT, question(2))
    assert first is not None
    assert len(first.digests) > 20
    assert second is None or len(second.digests) <= 1
    assert teach(prefixes, SYSTEM, DOCUMENT, question(2)) is None


def test_claim_beyond_the_shared_text_is_taken_back() -> None:
    """Dense text after a prefix makes it look longer than it is, until another prompt shows where they part."""
    prefixes = PrefixMap("r")
    teach(prefixes, SYSTEM, Segment(7, 1000, 4000))
    assert deepest(prefixes, SYSTEM) > 1024 // 16
    for number in range(8):
        teach(prefixes, SYSTEM, question(number))
    assert 1024 // 16 - 8 <= deepest(prefixes, SYSTEM) <= 1024 // 16


def test_short_text_that_shares_no_reported_block_ends_as_nothing() -> None:
    """Then it is no longer shared, however many prompts begin with it."""
    prefixes, short = PrefixMap("r"), Segment(3, 200, 100)
    shared = [teach(prefixes, short, Segment(number, 100, 200)) for number in range(6)]
    assert deepest(prefixes, short) == 0
    assert all(short_digest(short) not in text.digests for text in shared[3:] if text is not None)


def short_digest(segment: Segment) -> bytes:
    return make_prompt([segment]).digests[0]


def test_agreed_claim_does_not_grow() -> None:
    """A later prompt whose estimate reaches further does not move what two agree on."""
    prefixes = PrefixMap("r")
    teach(prefixes, SYSTEM, Segment(1, 4096, 100))
    before = deepest(prefixes, SYSTEM)
    teach(prefixes, SYSTEM, Segment(2, 4096, 100))
    teach(prefixes, SYSTEM, Segment(3, 400, 4000))
    assert deepest(prefixes, SYSTEM) == before


def test_new_template_is_learned_in_one_prompt() -> None:
    """When the same text has other blocks from the first one on, most of it is claimed anew at once."""
    prefixes = PrefixMap("r")
    for number in range(3):
        teach(prefixes, SYSTEM, DOCUMENT, question(number), before=40, date=1)
    teach(prefixes, SYSTEM, DOCUMENT, question(7), before=40, date=2)
    found = prefixes.known(NAMESPACE, make_prompt([SYSTEM, DOCUMENT]))
    chain = make_chain([SYSTEM, DOCUMENT, question(8)], before=40, date=2)
    assert found[-1].block_count > 360
    assert all(known.block_hash in chain.hashes for known in found)


SEGMENTS = st.builds(Segment, st.integers(0, 3), st.integers(1, 3000), st.integers(0, 900))


@st.composite
def families(draw: st.DrawFn) -> list[list[Segment]]:
    """Prompts that share beginnings: paths in a small tree of segments. No two are the same."""
    tree = draw(st.lists(st.lists(SEGMENTS, min_size=1, max_size=3), min_size=1, max_size=4))
    paths = draw(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), min_size=1, max_size=5))
    found = [
        [tree[depth % len(tree)][step % len(tree[depth % len(tree)])] for depth, step in enumerate(path)]
        for path in paths
    ]
    return [[*segments, Segment(100 + number, 50, 20)] for number, segments in enumerate(found)]


@given(families(), st.integers(0, 60), st.booleans())
def test_updates_end_in_the_truth(family: list[list[Segment]], before: int, twice: bool) -> None:
    """However text and tokens are spread, a few rounds of the same prompts leave nothing to share and nothing wrong."""
    prefixes = PrefixMap("r")
    order = [segments for segments in family for _ in range(1 + twice)]
    for _ in range(60):
        if not [text for segments in order if (text := teach(prefixes, *segments, before=before)) is not None]:
            break
    else:
        pytest.fail("still learning after 60 rounds")
    for segments in family:
        chain = make_chain(segments, before=before)
        true = dict(zip(chain.block_counts, chain.hashes, strict=True))
        for known in prefixes.known(NAMESPACE, make_prompt(segments)):
            assert true.get(known.block_count) == known.block_hash


@given(families(), st.data())
def test_replicas_that_read_the_same_log_have_the_same_map(family: list[list[Segment]], data: st.DataObject) -> None:
    """Each learns of its own, early, and reads the log late: in the end all agree, and so does a new one."""
    replicas = [PrefixMap("a"), PrefixMap("b"), PrefixMap("c")]
    read, log = [0, 0, 0], list[PrefixMapUpdate]()
    for _ in range(data.draw(st.integers(1, 12))):
        who = data.draw(st.integers(0, 2))
        if data.draw(st.booleans()):
            text = teach(replicas[who], *data.draw(st.sampled_from(family)))
            log += [] if text is None else [text]
        else:
            until = data.draw(st.integers(read[who], len(log)))
            for text in log[read[who] : until]:
                replicas[who].apply(text)
            read[who] = until
    for replica, position in zip([*replicas, PrefixMap("new")], [*read, 0], strict=True):
        for text in log[position:]:
            replica.apply(text)
        replicas += [replica] if replica not in replicas else []
    prompts = [make_prompt(segments) for segments in family]
    assert all(contents(replica, prompts) == contents(replicas[0], prompts) for replica in replicas)
    assert len({replica.tokens_of(NAMESPACE, prompts[0]) for replica in replicas}) == 1


@given(families())
def test_learning_is_applying_ones_own_update(family: list[list[Segment]]) -> None:
    """Nothing is learned that is not shared, and reading it twice, as sent over the wire, changes nothing."""
    learner, reader = PrefixMap("a"), PrefixMap("b")
    prompts = [make_prompt(segments) for segments in family]
    for segments in family:
        text = teach(learner, *segments)
        if text is not None:
            again = msgspec.msgpack.decode(msgspec.msgpack.encode(text), type=PrefixMapUpdate)
            reader.apply(again)
            reader.apply(again)
        assert contents(reader, prompts) == contents(learner, prompts)
        assert len(reader) == len(learner)


def make_update(**changes: object) -> PrefixMapUpdate:
    fields: dict[str, object] = {
        "namespace": NAMESPACE,
        "digests": (b"a" * 16, b"b" * 16),
        "block_counts": (8, 16),
        "hashes": (b"x", b"y"),
        "bytes_per_token": 4.0,
        "router": "r",
    }
    return PrefixMapUpdate(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {"digests": (b"a" * 15, b"b" * 16)},
        {"digests": (b"a" * 16, b"b" * 17)},
        {"block_counts": (16, 8)},
        {"block_counts": (8, 1 << 32)},
        {"bytes_per_token": 0.0},
        {"bytes_per_token": 1e9},
        {"namespace": ""},
    ],
)
def test_malformed_update_is_dropped_whole_and_counted(changes: dict[str, object]) -> None:
    """Nothing malformed enters the map."""
    prefixes = PrefixMap("r")
    prefixes.apply(make_update(**changes))
    assert (len(prefixes), prefixes.malformed) == (0, 1)
    prefixes.apply(make_update())
    assert (len(prefixes), prefixes.malformed) == (2, 1)


@pytest.mark.parametrize(("tokens", "counts"), [(10, (8, 16)), (1 << 40, (8, 1 << 32))])
def test_impossible_chain_teaches_nothing(tokens: int, counts: tuple[int, ...]) -> None:
    """A block has at least one token, and no prompt has billions."""
    prefixes = PrefixMap("r")
    assert prefixes.learn(make_prompt([SYSTEM]), PromptChain("r", tokens, counts, (b"x", b"y")), NAMESPACE) is None
    assert (len(prefixes), prefixes.malformed) == (0, 1)


def test_empty_chain_teaches_nothing() -> None:
    """A prompt without a full block is no error."""
    prefixes = PrefixMap("r")
    assert prefixes.learn(make_prompt([SYSTEM]), PromptChain("r", 10, (), ()), NAMESPACE) is None
    assert prefixes.malformed == 0


def test_contradictions_between_routers_are_left_out() -> None:
    """Two routers may have shared what does not fit: of a prompt's boundaries, those that fit are returned."""
    prefixes, prompt = PrefixMap("r"), make_prompt([Segment(n, 500, 1) for n in range(3)])
    digests = tuple(prompt.digests[prompt.ends.index(end)] for end in (500, 1000, 1500))
    prefixes.apply(make_update(digests=digests, block_counts=(8, 16, 24), hashes=(b"x", b"y", b"z")))
    prefixes.apply(make_update(digests=digests[:1], block_counts=(16,), hashes=(b"w",)))
    prefixes.apply(make_update(digests=digests[1:2], block_counts=(8,), hashes=(b"v",)))
    assert [(known.block_count, known.block_hash) for known in prefixes.known(NAMESPACE, prompt)] == [
        (8, b"v"),
        (24, b"z"),
    ]


def test_of_boundaries_with_one_count_the_first_is_known() -> None:
    """It is in the most prompts, so what is found out for it serves the most."""
    prefixes, prompt = PrefixMap("r"), make_prompt([Segment(n, 500, 1) for n in range(3)])
    digests = tuple(prompt.digests[prompt.ends.index(end)] for end in (500, 1000, 1500))
    prefixes.apply(make_update(digests=digests, block_counts=(8, 8, 16), hashes=(b"x", b"x", b"y")))
    assert [prompt.ends[known.index] for known in prefixes.known(NAMESPACE, prompt)] == [500, 1500]


def test_boundaries_before_the_first_block_hide_none_behind_them() -> None:
    """Several that are known to have no whole block are left out, and nothing else is."""
    prefixes, prompt = PrefixMap("r"), make_prompt([Segment(n, 500, 1) for n in range(4)])
    digests = tuple(prompt.digests[prompt.ends.index(end)] for end in (500, 1000, 1500, 2000))
    prefixes.apply(make_update(digests=digests, block_counts=(0, 0, 8, 16), hashes=(b"0", b"0", b"x", b"y")))
    assert [prompt.ends[known.index] for known in prefixes.known(NAMESPACE, prompt)] == [1500, 2000]


@given(st.lists(st.sampled_from([None, 0, 1, 2, 3, 4]), min_size=1, max_size=8))
def test_known_are_the_first_of_each_count_that_nothing_behind_contradicts(claims: list[int | None]) -> None:
    """Whatever routers have shared of a prompt's boundaries; the deepest is the last of these."""
    prefixes, prompt = PrefixMap("r"), make_prompt([Segment(n, 500, 1) for n in range(len(claims))])
    for end, claim in enumerate(claims, 1):
        if claim is not None:
            digest = prompt.digests[prompt.ends.index(500 * end)]
            prefixes.apply(make_update(digests=(digest,), block_counts=(claim,), hashes=(b"%d" % claim,)))
    first: dict[int, int] = {}
    for at, claim in enumerate(claims):
        if claim and all(later >= claim for later in claims[at:] if later is not None):
            first.setdefault(claim, 500 * (at + 1))
    known = prefixes.known(NAMESPACE, prompt)
    assert [(boundary.block_count, prompt.ends[boundary.index]) for boundary in known] == sorted(first.items())
    assert prefixes.deepest(NAMESPACE, prompt) == (known[-1] if known else None)


def test_namespaces_know_nothing_of_each_other() -> None:
    """The same text has other blocks in another engine."""
    prefixes = PrefixMap("r")
    teach(prefixes, SYSTEM)
    assert prefixes.known("other", make_prompt([SYSTEM])) == []


def test_tokens_follow_what_is_learned_and_ids_are_exact() -> None:
    """Four bytes a token until the namespace's own average is known."""
    prefixes, prompt = PrefixMap("r"), make_prompt([Segment(0, 3000, 1000)])
    assert prefixes.tokens_of(NAMESPACE, prompt) == 750
    teach(prefixes, Segment(0, 3000, 1000))
    assert prefixes.tokens_of(NAMESPACE, prompt) == 1000
    teach(prefixes, Segment(5, 4000, 1000))
    assert prefixes.tokens_of(NAMESPACE, prompt) == round(3000 / 3.1)
    assert prefixes.tokens_of(NAMESPACE, prompt._replace(tokens=5)) == 5
    assert prefixes.tokens_of("other", prompt) == 750


def test_token_ids_leave_the_average_of_text_alone() -> None:
    """Four bytes an id says nothing of text."""
    prefixes, ids = PrefixMap("r"), [Segment(9, 4000, 1000)]
    teach(prefixes, Segment(0, 3000, 1000))
    prefixes.learn(make_prompt(ids)._replace(tokens=1000), make_chain(ids), NAMESPACE)
    assert prefixes.tokens_of(NAMESPACE, make_prompt([Segment(0, 3000, 1000)])) == 1000


def test_flush_of_all_forgets_every_text() -> None:
    """In every namespace."""
    prefixes = PrefixMap("r")
    teach(prefixes, SYSTEM)
    prefixes.flush(Flush("all", b"", "r"))
    assert (len(prefixes), deepest(prefixes, SYSTEM)) == (0, 0)


def test_flush_of_one_boundary_leaves_the_others() -> None:
    """A boundary is named by its digest."""
    prefixes, prompt = PrefixMap("r"), make_prompt([SYSTEM])
    teach(prefixes, SYSTEM)
    known = prefixes.known(NAMESPACE, prompt)
    prefixes.flush(Flush("prefix", prompt.digests[known[0].index], "r"))
    assert prefixes.known(NAMESPACE, prompt) == known[1:]


def test_repr_says_how_much_is_known() -> None:
    """For logs."""
    prefixes = PrefixMap("r")
    prefixes.apply(make_update())
    assert repr(prefixes) == "PrefixMap(boundaries=2, namespaces=1)"
