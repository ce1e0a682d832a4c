"""Made-up text of some frequent and many rare words, and a tokenizer with a token a word."""

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

NAMES = [
    a + b for a in "bdfgklmn" for b in ("ana", "elo", "iru", "omi", "use", "ato", "eki", "ova")
]
WORDS = ["the", "of", "and", ",", ".", *NAMES[:60]]
SHARE = np.array([12, 8, 6, 9, 7, *(3 / (1 + i / 8) for i in range(60))])


def space_tokenizer():
    """A token a word, with the space before it."""
    ids = {"<unk>": 0} | {f"Ġ{word}": i + 1 for i, word in enumerate(WORDS)}
    rules = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    rules.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    rules.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=rules, unk_token="<unk>")


def texts(n=24, seed=0):
    rng = np.random.default_rng(seed)
    p = SHARE / SHARE.sum()
    return [" ".join(rng.choice(WORDS, rng.integers(30, 90), p=p)) for _ in range(n)]
