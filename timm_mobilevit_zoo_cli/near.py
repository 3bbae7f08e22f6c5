"""Which words a mistyped one may have been meant for."""

from collections.abc import Iterable
from difflib import SequenceMatcher

__all__ = ["did_you_mean", "nearest"]


def nearest(word: str, among: Iterable[str], count: int = 3) -> list[str]:
    """Return the words that are most like a mistyped one, the likest first; none where none is like it.

    Args:
        word: As it was typed, in any case.
        among: The words that there are.
        count: How many, at most.
    """
    known = {one.lower(): one for one in among}
    typed = word.lower()
    least, match = 0.6 if len(typed) < 5 else 0.7, SequenceMatcher(b=typed)
    likeness = {}
    for one in known:
        match.set_seq1(one)
        if match.real_quick_ratio() >= least and match.quick_ratio() >= least and match.ratio() >= least:
            likeness[one] = match.ratio()
    found = sorted(likeness, key=lambda one: (-likeness[one], one))
    if len(typed) > 2:  # a part of a longer name: of a family's, its smallest come first in the alphabet
        found += sorted((one for one in known if typed in one), key=lambda one: (not one.startswith(typed), len(one)))
    return [known[one] for one in dict.fromkeys(found)][:count]


def did_you_mean(word: str, among: Iterable[str]) -> str:
    """Return the end of a message about a mistyped word: `; did you mean a or b?`, nothing where none is like it.

    Args:
        word: As it was typed.
        among: The words that there are.
    """
    *first, last = nearest(word, among) or [""]
    if not last:
        return ""
    return f"; did you mean {', '.join(first)} or {last}?" if first else f"; did you mean {last}?"
