"""Numbers of things in words, for whoever tells them to people."""


def counted(number: int, noun: str) -> str:
    """`1 microbatch`, `1,200 microbatches`, `0 stages`: for regular nouns, whose last word is counted."""
    if number == 1:
        return f"1 {noun}"
    return f"{number:,} {noun}{'es' if noun.endswith(('ch', 's')) else 's'}"
