"""Runs a Program for real on torch.distributed and returns a Timeline, metrics and PEFT adapters."""
