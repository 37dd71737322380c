"""What a microbatch is assumed to cost beside its tokens; a file of its own, since `plan --help` needs it at once."""

from typing import Final

OVERHEAD_TOKENS: Final = 1024
"""What a microbatch costs beside its tokens, in tokens: launches and packing. An H100 waits for its host below one to
two thousand tokens of an 8B model. Simulated by that GPU's profile, plans made so are within 17 % of plans made by the
profile, mostly within 1 %, and full microbatches up to 2.7 times slower (docs/log.md, 2026-11-26)."""
