"""Answers that a grammar constrains: vLLM's own paths of grammars, in a simulated engine that samples what they allow.

A block's KV follows from its tokens, whatever else these might have been, so such requests are shared like others. They
differ in when they run: vLLM asks what can be pulled only when the grammar is there.
"""

from __future__ import annotations

import random
from concurrent.futures import Future
from typing import Any

import pytest

pytest.importorskip("vllm")

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast
from vllm.sampling_params import StructuredOutputsParams
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.request import Request

from tests.conftest import SOAK
from tests.integration.connector.conftest import Make
from tests.integration.connector.enginesim import SimEngine
from tests.integration.connector.prefix_numbers import BLOCK_TOKENS, VOCABULARY, RunnerRequest, prompts, tokens_of
from tests.integration.connector.simfleet import meet, settled

pytestmark = pytest.mark.engine

BLOCKS = 12
ANSWER_TOKENS = 2 * BLOCK_TOKENS
EVEN = r"([0-9]*[02468],)+"
"""A regular expression over the texts of tokens, each of which is its number and a comma."""
END = 0
"""The token that ends an answer: grammars allow it, and requests here do not want it."""
WORD_BITS = 32
POOL = 64
REQUESTS = 10_000 if SOAK else 60
FREE_SHARE, COMPILED_SHARE = 0.3, 0.7


class Constrained:
    """Has an engine's scheduler know tokenizer and grammars, and its rank sample what these allow."""

    def __init__(self, engine: SimEngine) -> None:
        self.engine = engine
        words = {"<end>": END} | {f"{number},": number for number in range(1, VOCABULARY)}
        tokenizer = Tokenizer(WordLevel(words, unk_token="<end>"))
        self.manager = engine.scheduler.structured_output_manager
        self.manager.tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
        self.manager.executor = self
        self.compiles: list[tuple[Future[Any], Any]] = []
        self._forward = engine.rank._forward
        engine.rank._forward = self._sample_allowed  # type: ignore[method-assign]

    def submit(self, compile_grammar: Any, request: Request) -> Future[Any]:
        """Compile when the test says so, in place of vLLM's threads."""
        self.compiles.append((Future(), lambda: compile_grammar(request)))
        return self.compiles[-1][0]

    def compile(self) -> None:
        for future, compile_grammar in self.compiles:
            try:
                future.set_result(compile_grammar())
            except Exception as exc:
                future.set_exception(exc)
        self.compiles.clear()

    def add(self, name: str, tokens: list[int], *, regex: str = EVEN) -> Request:
        params = StructuredOutputsParams(regex=regex)
        params._backend = "xgrammar"  # as vLLM's API process finds it out
        request = self.engine.add(name, tokens, max_tokens=ANSWER_TOKENS, sampling={"structured_outputs": params})
        self.manager.grammar_init(request)
        return request

    def complete(self, name: str, tokens: list[int]) -> float:
        """Complete a prompt rightly; return how many blocks came from the peer."""
        before = self.engine.counted("gc_cache_hits_total")
        self.add(name, tokens)
        self.compile()
        self.engine.run()
        settled(self.engine)
        assert self.engine.wrong == []
        assert self.engine.outputs(name) == even_output(tokens)
        return self.engine.counted("gc_cache_hits_total") - before

    def _sample_allowed(self, request_id: str, output: SchedulerOutput) -> list[int]:
        sampled = self._forward(request_id, output)
        grammars = self.engine.scheduler.get_grammar_bitmask(output)
        if not sampled or grammars is None or request_id not in grammars.structured_output_request_ids:
            return sampled
        row = grammars.grammar_bitmask[grammars.structured_output_request_ids.index(request_id)]
        ordered = [*range(sampled[0], VOCABULARY), *range(sampled[0])]
        chosen = next(token for token in ordered if token != END and row[token // WORD_BITS] >> token % WORD_BITS & 1)
        self.engine.rank._running[request_id].tokens[-1] = chosen
        return [chosen]


def even_output(tokens: list[int]) -> list[int]:
    """Return what a request must sample whose answer is even numbers, computed from its tokens alone."""
    state = RunnerRequest(list(tokens), [])
    for _ in range(ANSWER_TOKENS):
        token = state.number(len(state.tokens) - 1) % VOCABULARY
        state.tokens.append((token + token % 2) % VOCABULARY or 2)
    return state.tokens[len(tokens) :]


@pytest.fixture
def fleet(make: Make) -> tuple[Constrained, Constrained]:
    engines = make("a", blocks=POOL), make("b", blocks=POOL)
    meet(*engines)
    return Constrained(engines[0]), Constrained(engines[1])


def test_constrained_answers_are_pulled_like_others(fleet: tuple[Constrained, Constrained]) -> None:
    """Prompts and what was answered to them; and such a request pulls what others computed without a grammar."""
    a, b = fleet
    prompt = tokens_of(1, BLOCKS * BLOCK_TOKENS + 3)
    assert a.complete("first", prompt) == 0
    turn = prompt + a.engine.outputs("first")
    assert b.complete("second", turn) == BLOCKS + ANSWER_TOKENS // BLOCK_TOKENS
    free = tokens_of(2, BLOCKS * BLOCK_TOKENS + 3)
    a.engine.add("free", free)
    a.engine.run()
    settled(a.engine)
    assert b.complete("third", free) == BLOCKS


def test_pull_begins_when_the_grammar_is_there(fleet: tuple[Constrained, Constrained]) -> None:
    """Until then vLLM asks for nothing, gives the request no blocks, and computes others before it."""
    a, b = fleet
    prompt = tokens_of(1, BLOCKS * BLOCK_TOKENS + 3)
    a.complete("first", prompt)
    late = b.add("late", prompt)
    b.engine.add("other", tokens_of(2, 40))
    while not b.engine.requests["other"].is_finished():
        b.engine.step()
    assert (late.num_computed_tokens, b.engine.counted("gc_cache_hits_total")) == (0, 0)
    b.compile()
    b.engine.run()
    assert (b.engine.counted("gc_cache_hits_total"), b.engine.wrong) == (BLOCKS, [])
    assert b.engine.outputs("late") == even_output(prompt)


def test_request_whose_grammar_is_faulty_leaves_nothing_behind(fleet: tuple[Constrained, Constrained]) -> None:
    """vLLM ends it with an error; what was looked up for it is forgotten, and others go on."""
    a, b = fleet
    prompt = tokens_of(1, BLOCKS * BLOCK_TOKENS + 3)
    a.complete("first", prompt)
    faulty = b.add("faulty", prompt, regex="(")
    b.compile()
    b.engine.run()
    assert faulty.is_finished()
    assert b.engine.outputs("faulty") == []
    assert b.engine.connector._scheduler._tracked == {}
    assert b.engine.free_blocks() == POOL - 1
    assert b.complete("second", prompt) == BLOCKS


def test_slots_reused_all_the_time_never_give_a_wrong_token(make: Make, lagging_url: str) -> None:
    """With a pool of a few prompts, late grammars, an index that lags, and requests without a grammar in the steps."""
    engines = [make(name, blocks=30, settings={"redis_url": lagging_url}) for name in "ab"]
    meet(*engines)
    sides, source = [Constrained(engine) for engine in engines], prompts(1, documents=6, blocks=7, tail=20)
    chance = random.Random(1)
    asked: list[tuple[Constrained, str, list[int]]] = []
    for number in range(REQUESTS):
        side, prompt = sides[number % 2], next(source)
        if chance.random() < FREE_SHARE:
            side.engine.add(f"free{number}", prompt)
        else:
            side.add(f"r{number}", prompt)
            asked.append((side, f"r{number}", prompt))
        for each in sides:
            if chance.random() < COMPILED_SHARE:
                each.compile()
            for _ in range(3):
                each.engine.step()
    for each in sides:
        each.compile()
        each.engine.run()
        assert each.engine.wrong == []
        assert each.engine.free_blocks() == 29
    assert [side.engine.outputs(name) for side, name, _ in asked] == [even_output(prompt) for *_, prompt in asked]
    assert sum(engine.counted("gc_cache_hits_total") for engine in engines) > 0
