"""Where sentences end, by punctuation, for prose in any script and without a model.

Not a parser: it errs towards longer pieces (no end after "Mr." or an initial, nor before a word in
lower case), because a piece that is too long costs nothing here and a needle planted inside a
sentence does.
"""

import itertools
import re

_ENDING = re.compile(
    r"(?P<stop>[.!?…]+)[\"'”’»)\]]*(?=\s+[\"'“‘«(\[¿¡]*(?P<next>[^\W_]))"
    r"|[。！？]+[」』”’）]*(?=\s*\S)"
    r"|(?<=\S)(?=[^\S\n]*\n[^\S\n]*\n\s*\S)"
)
_WORD_BEFORE = re.compile(r"[\w.]+$")
_NEVER_LAST = re.compile(
    r"mrs?|ms|mme|mlle|messrs|dr|prof|st|sir|hon|rev|gen|col|maj|capt|lt|sgt|jr"
    r"|vs|cf|viz|ca|approx|dept|inc|ltd"
)
_BEFORE_NUMBER = re.compile(r"nos?|vols?|pp?|figs?|ch|sec|art|c|ll?")


def sentences(text: str) -> list[str]:
    """Split into sentences, each with the whitespace before it, so that joining gives `text`."""
    cuts = [0, *(m.end() for m in _ENDING.finditer(text) if _is_end(text, m))]
    end = len(text) if len(text) > cuts[-1] else cuts.pop()
    pieces = [text[a:b] for a, b in itertools.pairwise([*cuts, end])]
    return [piece for piece in pieces if piece]


def _is_end(text: str, match: re.Match[str]) -> bool:
    """False after abbreviations and initials, and where the next word is in lower case."""
    following = match["next"]
    if following is None:
        return True  # a paragraph's end, or a full stop of a script without capitals
    if following.islower():
        return False
    word = _WORD_BEFORE.search(text, max(0, match.start() - 20), match.start())
    if match["stop"] != "." or word is None:
        return True
    last = word[0].casefold()
    initial = (len(last) == 1 and last.isalpha()) or re.fullmatch(r"(\w\.)+\w", last)
    numbered = following.isdigit() and _BEFORE_NUMBER.fullmatch(last)
    return not (initial or numbered or _NEVER_LAST.fullmatch(last))
