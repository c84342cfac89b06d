"""Documents with graded edits, and the exact similarity of each pair: what near-deduplication is measured on."""

import random
import re
from itertools import combinations

import numpy as np

from llama_code.data.near_dedup import RUN_LENGTH
from llama_code.data.shingles import WORD

# A share of the words is replaced; of runs of five words about (1 - share)**5 stay.
EDITS = (0.0, 0.002, 0.005, 0.008, 0.012, 0.016, 0.02, 0.03, 0.045, 0.06, 0.1)


def planted_documents(texts: list[str], num_copies: int, seed: int = 0) -> list[tuple[int, str]]:
    """Return each text with edited copies of it, shuffled, as `(number of the text, text)`."""
    random_ = random.Random(seed)
    documents = [
        (family, edited(text, share, random_))
        for family, text in enumerate(texts)
        for share in (0.0, *random_.choices(EDITS[1:], k=num_copies))
    ]
    random_.shuffle(documents)
    return documents


def edited(text: str, share: float, random_: random.Random) -> str:
    """Replace a share of a text's words by new ones."""

    def replace(match: re.Match[str]) -> str:
        return f"word{random_.randrange(10**9)}" if random_.random() < share else match[0]

    return WORD.sub(replace, text)


def exact_similarities(documents: list[tuple[int, str]]) -> dict[tuple[int, int], float]:
    """Return the Jaccard similarity of the sets of runs of words, of all pairs within a family, by their indices.

    Documents of different families share little; the caller may check that of pairs that are reported.
    """
    runs = [run_set(text) for _, text in documents]
    families: dict[int, list[int]] = {}
    for i, (family, _) in enumerate(documents):
        families.setdefault(family, []).append(i)
    return {pair: jaccard(*(runs[i] for i in pair)) for own in families.values() for pair in combinations(own, 2)}


def run_set(text: str) -> set[tuple[str, ...]]:
    """The runs of words of a text, as text: nothing is hashed."""
    words = WORD.findall(text)
    return {tuple(words[i : i + RUN_LENGTH]) for i in range(len(words) - RUN_LENGTH + 1)}


def jaccard(one: set, other: set) -> float:
    """|A and B| / |A or B|."""
    return len(one & other) / max(1, len(one | other))


def recall_and_precision(documents: list[tuple[int, str]], found: dict[int, int]) -> tuple[float, float, int]:
    """Return the share of pairs at 0.8 or more of which not both stay, that of reported ones at 0.6 or more, and how
    many pairs there are at 0.8 or more.
    """
    pairs = [pair for pair, value in exact_similarities(documents).items() if value >= 0.8]
    caught = [not {*pair} - found.keys() == {*pair} for pair in pairs]
    reported = [jaccard(run_set(documents[i][1]), run_set(documents[j][1])) for i, j in found.items()]
    return float(np.mean(caught)), float(np.mean([value >= 0.6 for value in reported])), len(pairs)
