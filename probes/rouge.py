"""Does an output hold the answer? ROUGE-1 recall, and an exact whole-word test.

The published retrieval-head protocol (arXiv 2404.15574) gates each trial on ROUGE-1 recall with
the tokenizer of Google's rouge-score package, which drops every character outside a-z and 0-9: an
answer in Russian or Chinese has no words left, and always scores 0. Our default keeps letters and
digits of every script; `published_rouge1_recall` is the original.
"""

import re
import unicodedata
from functools import cache
from typing import Any

# Scripts written without spaces: each character counts as a word.
_ONE_BY_ONE = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003ffff]"
)
_GROUPED = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_ENGLISH = re.compile(r"[a-z]{4,}")


def rouge1_recall(reference: str, candidate: str, *, stem: bool = True) -> float:
    """Share in [0, 1] of the reference's words that occur in the candidate, counts respected.

    An empty reference gives 0. `stem` compares English words of over 3 letters by their stem.
    """
    return float(_scorer("stemmed" if stem else "plain").score(reference, candidate)[_R1].recall)


def published_rouge1_recall(reference: str, candidate: str) -> float:
    """ROUGE-1 recall in [0, 1] as published: ASCII words only, stemmed; 0 without a word."""
    return float(_scorer("published").score(reference, candidate)[_R1].recall)


def contains(answer: str, text: str) -> bool:
    """Whether `text` holds `answer` as a run of whole words; case, width and punctuation apart.

    "58213" is in "It is 58,213." but not in "158213". An answer without a word is in no text.
    """
    wanted, given = words(_GROUPED.sub("", answer)), words(_GROUPED.sub("", text))
    n = len(wanted)
    return n > 0 and any(given[i : i + n] == wanted for i in range(len(given) - n + 1))


def words(text: str) -> list[str]:
    """Case-folded runs of letters, digits, marks and `_`; one character each for CJK and Thai.

    A point between digits stays, so that 3.5 is one word and does not hold 5.
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    found: list[str] = []
    joins = False  # whether the next word character continues the last word
    for i, char in enumerate(text):
        if _ONE_BY_ONE.match(char):
            joins = bool(found) and joins and unicodedata.category(char)[0] == "M"
        elif not (char.isalnum() or char == "_" or unicodedata.category(char)[0] == "M"):
            point = char == "." and text[i - 1 : i].isdigit() and text[i + 1 : i + 2].isdigit()
            joins = joins and point
            if not joins:
                continue
        elif joins and _ONE_BY_ONE.match(found[-1]):
            joins = False
        if joins:
            found[-1] += char
        else:
            found.append(char)
        joins = True
    return found


_R1 = "rouge1"


class _Words:
    """What rouge-score asks of a tokenizer: an object with `tokenize`."""

    def __init__(self, stem: Any) -> None:
        self._stem = stem

    def tokenize(self, text: str) -> list[str]:
        """Words of a text, English ones reduced to their stem where a stemmer was given."""
        found = words(text)
        return [self._stem(w) if self._stem and _ENGLISH.fullmatch(w) else w for w in found]


@cache
def _scorer(kind: str) -> Any:
    from nltk.stem.porter import PorterStemmer
    from rouge_score import rouge_scorer

    if kind == "published":
        return rouge_scorer.RougeScorer([_R1], use_stemmer=True)
    stem = PorterStemmer().stem if kind == "stemmed" else None
    return rouge_scorer.RougeScorer([_R1], tokenizer=_Words(stem))
