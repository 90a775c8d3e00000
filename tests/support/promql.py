"""Reads PromQL expressions: which series they select, and by which labels they group."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import promql_parser


class Selector(NamedTuple):
    """One selection of series in an expression."""

    metric: str
    """Its name, with `_bucket`, `_sum` or `_count` behind it for a part of a histogram."""
    matchers: tuple[tuple[str, str, str], ...]
    """Label, operator (``=``, ``!=``, ``=~``, ``!~``) and value of each condition."""
    groups: frozenset[str]
    """Labels by which what is selected is grouped or joined, at any level."""


def selectors(expression: str) -> list[Selector]:
    """Return every selection of an expression. Raises ValueError where it is none."""
    return list(_selectors(promql_parser.parse(expression), frozenset()))


def _selectors(node: Any, groups: frozenset[str]) -> Iterator[Selector]:
    match node:
        case promql_parser.VectorSelector():
            conditions = [(each.name, _OPERATORS[str(each.op)], each.value) for each in node.matchers.matchers]
            yield Selector(node.name, tuple(conditions), groups)
        case promql_parser.MatrixSelector():
            yield from _selectors(node.vector_selector, groups)
        case promql_parser.AggregateExpr():
            yield from _selectors(node.expr, groups | _labels(node.modifier))
        case promql_parser.BinaryExpr():
            joined = _labels(node.modifier.matching) if node.modifier is not None else frozenset()
            for side in (node.lhs, node.rhs):
                yield from _selectors(side, groups | joined)
        case promql_parser.Call():
            for argument in node.args:
                yield from _selectors(argument, groups)
        case promql_parser.ParenExpr() | promql_parser.UnaryExpr() | promql_parser.SubqueryExpr():
            yield from _selectors(node.expr, groups)


def _labels(modifier: Any) -> frozenset[str]:
    return frozenset() if modifier is None else frozenset(modifier.labels)


_OPERATORS = {"MatchOp.Equal": "=", "MatchOp.NotEqual": "!=", "MatchOp.Re": "=~", "MatchOp.NotRe": "!~"}
