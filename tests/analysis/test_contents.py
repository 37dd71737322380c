"""Microbatches in words."""

from loraplex.analysis.contents import contents_of
from loraplex.planner.plan import Plan


def test_every_microbatch_names_its_adapters_and_their_tokens(two_adapters: Plan) -> None:
    assert contents_of(two_adapters) == {
        0: "maths: 40 tokens, papers: 30 tokens",
        1: "papers: 90 tokens",
        2: "maths: 10 tokens",
    }
