"""How numbers of things are said."""


def counted(number: int, noun: str, plural: str = "") -> str:
    """Say how many there are: `1 object`, `2 objects`, `1,200 branches` (with `plural="branches"`)."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
