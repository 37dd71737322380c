"""From jobs to one Plan: grouping, packing, merging, and the per-stage Program that both interpreters run."""
