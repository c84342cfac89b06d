"""Decontamination: which documents carry a benchmark's problem.

A document is a hit of a problem where it holds one of the problem's texts whole, space, punctuation and case aside
(StarCoder removes files that contain a docstring or a solution: Li et al. 2023, section 3.2), or a large part of it
as runs of ten words. Brown et al. 2020 (appendix C) take any shared run of 13 words, and drop runs that many
documents share: in code, one run is a loop that everybody writes, hence a share of the text's runs.

`python -m llama_code.data.decontaminate` lists the hits of a corpus.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm.auto import tqdm

from llama_code.data.benchmark_texts import benchmark_texts
from llama_code.data.document import normalize
from llama_code.data.shingles import WORD, run_hashes, word_hashes
from llama_code.data.sources import Source, open_source
from llama_code.errors import UserError, run_script

RUN_LENGTH = 10
# A shorter text is code that many write: in 256 MB of installed Python HumanEval's and MBPP's texts of up to 9 words
# are found whole 141 times (`return a + b`, Euclid's algorithm), those of 10 and more never.
MIN_WORDS = RUN_LENGTH
# A document holds a large part of a text where it has this share of the text's runs and this many of them: half of a
# text of 38 words is enough. The most that installed Python has by chance is 29% and 7 runs (loops over pairs, a table
# of zero 0 one 1 two 2); one run alone would take 277 of its documents, and the most alike of them are no copies.
MIN_SHARE = 1 / 3
MIN_RUNS = 10
# A run in the texts of more problems than these is their common form (reading input, "Write a python function to").
MAX_TASKS = 5
# Case counts in the words' hashes; every tenth run in these forms finds the documents to compare without it.
_OTHER_CASES = (str.lower, str.upper)


class _Runs(NamedTuple):
    """The runs of all texts, sorted: `hashes[i]` stands at `places[i]` of the texts one after the other.

    A run that a text repeats, such as ten zeros, has the place where it is first.
    """

    hashes: np.ndarray
    places: np.ndarray


class BenchmarkIndex:
    """The texts of benchmarks, prepared for looking for them in many documents; can be pickled.

    Args:
        texts: the texts of each problem by task id.
    """

    def __init__(self, texts: Mapping[str, Sequence[str]]) -> None:
        pairs = [(task_id, text) for task_id, of_one in texts.items() for text in of_one]
        pairs = [(task_id, text) for task_id, text in pairs if len(WORD.findall(text)) >= MIN_WORDS]
        self._task_ids = [task_id for task_id, _ in pairs]
        self._needles = [_plain(text) for _, text in pairs]
        tasks = {task_id: i for i, task_id in enumerate(texts)}
        runs = _all_runs([text for _, text in pairs])
        lengths = [len(WORD.findall(text)) - RUN_LENGTH + 1 for _, text in pairs]
        text_of = np.repeat(np.arange(len(pairs), dtype=np.int32), lengths)
        task_of = np.array([tasks[task_id] for task_id in self._task_ids], np.int32)
        runs = _without_common(runs, task_of[text_of[runs.places]])
        self._text_of = text_of
        self._num_runs = np.bincount(text_of[np.unique(runs.places)], minlength=len(pairs))
        self._places = runs.places.astype(np.int32)
        self._hashes, starts = np.unique(runs.hashes, return_index=True)
        self._starts = np.append(starts, len(runs.hashes)).astype(np.int32)
        # A Bloom filter (1970) of one hash function, an eighth of it taken at most: it answers for nearly all runs,
        # several times faster than the search among the hashes.
        num_bits = len(self._hashes).bit_length() + 3
        self._shift = np.uint64(64 - num_bits)
        self._filter = np.zeros(2**num_bits, bool)
        self._filter[self._hashes >> self._shift] = True

    def find_hits(self, text: str, words: np.ndarray) -> list[str]:
        """Return the task ids of the problems that a document carries, in the order of the texts.

        Args:
            text: the document.
            words: its `word_hashes`.
        """
        runs = run_hashes(words, RUN_LENGTH)
        runs = np.unique(runs[self._filter[runs >> self._shift]])
        if not len(runs):
            return []
        shared, counts = self._shared_runs(runs)
        is_large_part = (counts >= MIN_RUNS) & (counts >= MIN_SHARE * self._num_runs[shared])
        hits = {self._task_ids[i] for i in shared[is_large_part]}
        rest = [i for i in shared[~is_large_part] if self._task_ids[i] not in hits]
        if rest:
            plain = _plain(text)
            hits |= {self._task_ids[i] for i in rest if self._needles[i] in plain}
        return [task_id for task_id in dict.fromkeys(self._task_ids[i] for i in shared) if task_id in hits]

    def _shared_runs(self, runs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the texts that have some of the runs, and how many of its runs each has among them."""
        at = np.searchsorted(self._hashes, runs)
        at = at[self._hashes[np.minimum(at, len(self._hashes) - 1)] == runs]
        places = [self._places[self._starts[i] : self._starts[i + 1]] for i in at]
        if not places:
            return np.zeros(0, int), np.zeros(0, int)
        return np.unique(self._text_of[np.unique(np.concatenate(places))], return_counts=True)


def _plain(text: str) -> str:
    """Return the words in lower case between single spaces, one at each end: what is in it is so word by word."""
    return f" {' '.join(WORD.findall(text.lower()))} "


def _all_runs(texts: Sequence[str]) -> _Runs:
    """Return all runs of the texts as they are, and some in other cases."""
    hashes, places = [np.zeros(0, np.uint64)], [np.zeros(0, int)]
    first = 0
    for text in texts:
        own = run_hashes(word_hashes(text), RUN_LENGTH)
        _, firsts, of_run = np.unique(own, return_index=True, return_inverse=True)
        own_places = first + firsts[of_run]
        hashes.append(own)
        places.append(own_places)
        for change in _OTHER_CASES:
            changed = run_hashes(word_hashes(change(text)), RUN_LENGTH)
            if len(changed) == len(own):  # the Turkish I with a dot is two letters in lower case, which part words
                # From the end: texts begin alike, "Write a python function to find".
                hashes.append(changed[::-RUN_LENGTH])
                places.append(own_places[::-RUN_LENGTH])
        first += len(own)
    return _Runs(*_distinct(np.concatenate(hashes), np.concatenate(places)))


def _distinct(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct pairs, sorted by the first and then the second."""
    order = np.lexsort((second, first))
    first, second = first[order], second[order]
    is_new = np.ones(len(first), bool)
    is_new[1:] = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
    return first[is_new], second[is_new]


def _without_common(runs: _Runs, tasks: np.ndarray) -> _Runs:
    """Leave out the runs that are in the texts of more than MAX_TASKS problems; `tasks` has each run's problem."""
    hashes, num_tasks = np.unique(_distinct(runs.hashes, tasks)[0], return_counts=True)
    stays = num_tasks[np.searchsorted(hashes, runs.hashes)] <= MAX_TASKS
    return _Runs(runs.hashes[stays], runs.places[stays])


def source_hits(source: Source, index: BenchmarkIndex, progress: bool) -> Iterator[dict[str, Any]]:
    """Yield `{"task_ids", "project", "path"}` for each document of `source` that carries a problem.

    What cannot be read or is not UTF-8 is passed over: the filters drop it before training.
    """
    with tqdm(
        total=source.num_bytes, unit="B", unit_scale=True, desc=f"searching {source.name}", disable=not progress
    ) as bar:
        for document in source.documents():
            content = document.content or b""
            bar.update(len(content))
            try:
                text = normalize(content).decode("utf-8")
            except UnicodeDecodeError:
                continue
            task_ids = index.find_hits(text, word_hashes(text))
            if task_ids:
                yield {"task_ids": task_ids, "project": document.project, "path": document.path}


def main() -> None:
    """List the documents of a source that carry problems of HumanEval, MBPP or APPS."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--dataset", default="local-python", help="the source")
    parser.add_argument("--benchmark_dir", type=Path, help="folder with MBPP's or APPS' files; HumanEval needs none")
    parser.add_argument("--output", required=True, type=Path, help="file of JSON lines to write, a document a line")
    arguments = parser.parse_args()
    if not arguments.output.parent.is_dir():
        raise UserError(f"--output {str(arguments.output)!r} is in a folder that does not exist; make it first")
    texts = benchmark_texts(arguments.benchmark_dir)
    numbers = Counter(task_id.split("/")[0] for task_id in texts)
    print("searched for: " + ", ".join(f"{number:,} problems of {name}" for name, number in numbers.items()))
    # Written at the end: half a list would pass for a whole one.
    hits = list(source_hits(open_source(arguments.dataset), BenchmarkIndex(texts), progress=True))
    try:
        arguments.output.write_text("".join(json.dumps(hit) + "\n" for hit in hits), encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"--output {str(arguments.output)!r} cannot be written ({error.strerror}); give another file"
        ) from error
    num_problems = len({task_id for hit in hits for task_id in hit["task_ids"]})
    print(f"{len(hits):,} documents carry {num_problems:,} problems; they are listed in {arguments.output}")


if __name__ == "__main__":
    run_script(main)
