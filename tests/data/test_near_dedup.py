"""Near-duplicates: found on a planted set, deterministic, and nothing held out is dropped."""

import json
import random
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from datasketch import MinHash
from planted import edited, jaccard, planted_documents, recall_and_precision, run_set

from llama_code.data import near_dedup
from llama_code.data.near_dedup import NUM_PERMUTATIONS, near_duplicates, signatures, similarity
from llama_code.data.shingles import run_hashes, word_hashes

TEXT = Path(json.__file__).with_name("decoder.py").read_text()


def table(texts):
    return signatures([word_hashes(text) for text in texts])


def library_texts(number):
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    texts = [path.read_text(errors="replace") for path in paths if path.stat().st_size > 3000]
    return random.Random(0).sample(texts, number)


def test_recall_and_precision_on_a_planted_set():
    documents = planted_documents([text[:20_000] for text in library_texts(40)], num_copies=4)
    found = near_duplicates(table([text for _, text in documents]), np.zeros(len(documents), bool))
    recall, precision, num_pairs = recall_and_precision(documents, found)
    assert num_pairs > 80
    assert recall >= 0.95 and precision >= 0.95


def test_estimates_are_as_exact_as_those_of_another_minhash():
    """datasketch's estimate of the same pairs errs about as much; both by sqrt(s (1 - s) / 256) in theory."""
    generator = random.Random(1)
    errors, others = [], []
    for share in (0.01, 0.02, 0.05, 0.1):
        for text in library_texts(6):
            pair = text[:8000], edited(text[:8000], share, generator)
            exact = jaccard(*map(run_set, pair))
            rows = table(pair)
            errors.append(similarity(rows[0], rows[1:])[0] - exact)
            sketches = []
            for one in pair:
                sketches.append(MinHash(NUM_PERMUTATIONS))
                sketches[-1].update_batch([" ".join(run).encode() for run in run_set(one)])
            others.append(sketches[0].jaccard(sketches[1]) - exact)
    assert abs(np.mean(errors)) < 0.02
    assert np.sqrt(np.mean(np.square(errors))) < 1.5 * max(0.02, np.sqrt(np.mean(np.square(others))))


def test_the_earlier_one_stays_unless_the_later_one_is_held_out():
    rows = table([TEXT, edited(TEXT, 0.005, random.Random(0)), "x = 1\n" * 3, TEXT + "\nlast = 1\n"])
    assert near_duplicates(rows, np.zeros(4, bool)) == {1: 0, 3: 0}
    assert near_duplicates(rows, np.array([False, True, False, False])) == {0: 1, 3: 1}
    # what is held out stays, even where it is alike
    assert near_duplicates(rows, np.array([True, True, False, False])).keys() == {3}


def test_a_chain_of_small_differences_does_not_pull_all_of_it():
    generator = random.Random(2)
    chain = [TEXT]
    for _ in range(12):
        chain.append(edited(chain[-1], 0.02, generator))
    found = near_duplicates(table(chain), np.zeros(len(chain), bool))
    stays = set(range(len(chain))) - found.keys()
    assert len(stays) > 2
    for i, other in found.items():
        assert other in stays and jaccard(run_set(chain[i]), run_set(chain[other])) > 0.6


def test_short_documents_are_like_nothing():
    rows = table(["", "x = 1", "import os\n" * 6, "import os\n" * 6])
    assert (rows == np.iinfo(np.uint32).max).all()
    assert near_duplicates(rows, np.zeros(4, bool)) == {}


def test_signatures_do_not_depend_on_the_batch():
    texts = library_texts(5)
    whole = table(texts)
    assert (whole == np.concatenate([table([text]) for text in texts])).all()
    assert table([]).shape == (0, NUM_PERMUTATIONS)


def test_signatures_stay_what_they_are():
    """Prepared corpora are found again by the rules' text, which does not say what rensa does."""
    assert table([TEXT[:4000].lower()]).shape == (1, 256)
    text = " ".join(f"word{i}" for i in range(200))
    assert table([text])[0, :4].tolist() == [3223339734, 2131269067, 2685632137, 64284841]


def test_runs_of_words():
    words = word_hashes("a, b; a b")
    assert len(words) == 4 and words[0] == words[2] != words[1]
    runs = run_hashes(words, 2)
    assert len(runs) == 3 and runs[0] == runs[2] != runs[1]
    assert len(run_hashes(words, 4)) == 1 and len(run_hashes(words, 5)) == 0
    assert word_hashes("\ud800").shape == (0,) or word_hashes("\ud800").dtype == np.uint64


@pytest.mark.parametrize("num_bands", [1, 32])
def test_no_documents(num_bands, monkeypatch):
    monkeypatch.setattr(near_dedup, "NUM_BANDS", num_bands)
    assert near_duplicates(np.zeros((0, NUM_PERMUTATIONS), np.uint32), np.zeros(0, bool)) == {}
