"""Which samples share a microbatch, and in which order: strategies, bounds and the search over them."""
