"""Costs made up for the tests of `estimate` and `advise`."""

from loraplex.traces.costs import CostProfile, CostTerms, MemoryCosts, PassCosts

PROFILE = CostProfile(
    name="made-up",
    origin="textbook",
    source="a microsecond a token and layer",
    num_layers=32,
    forward=PassCosts(linears={"fused": CostTerms(per_token_ms=0.001)}),
    backward=PassCosts(linears={"fused": CostTerms(per_token_ms=0.002)}),
    memory=MemoryCosts(
        layer_weight_bytes=2**20,
        activation_bytes_per_token_layer=100.0,
        selective_bytes_per_token_layer=50.0,
        boundary_bytes_per_token=10.0,
        capacity_bytes=60 * 2**20,
    ),
)
