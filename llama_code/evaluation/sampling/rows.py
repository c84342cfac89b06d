"""The completions that are to be drawn, and each as it grows."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from hashlib import blake2b
from math import isnan
from typing import NamedTuple

from llama_code.errors import UserError
from llama_code.evaluation.healing import HealedPrompt
from llama_code.evaluation.vocabulary import Vocabulary


class Sample(NamedTuple):
    """A finished completion.

    Attributes:
        name: of its prompt.
        number: which of the prompt's samples it is, from 0.
        text: up to the first stop string or end token, without it.
        ids: the tokens drawn, up to the one that completes a stop string.
        log_probs: of each token, natural, in the model's own distribution: before temperature and cuts. Of a token
            that has to repeat text which was cut from the prompt, among those that agree with it.
    """

    name: str
    number: int
    text: str
    ids: list[int]
    log_probs: list[float]


class Limits(NamedTuple):
    """Where completions end.

    Attributes:
        max_new_tokens: most tokens, those included that repeat the text cut from the prompt.
        stop_strings: a completion ends before the first of these; none is looked for in the prompt.
        end_ids: tokens that end a completion.
    """

    max_new_tokens: int
    stop_strings: Sequence[str]
    end_ids: Collection[int]


class Row:
    """A completion that is being drawn."""

    def __init__(self, name: str, number: int, prompt: HealedPrompt, vocabulary: Vocabulary, limits: Limits) -> None:
        """Begin without a token."""
        self.name, self.number, self.prompt = name, number, prompt
        self.vocabulary, self.limits = vocabulary, limits
        self.ids: list[int] = []
        self.log_probs: list[float] = []
        self.bytes = bytearray()
        self.is_done = False

    def add(self, ids: Sequence[int], log_probs: Sequence[float]) -> int:
        """Take the next tokens, without those beyond the end; returns how many were taken.

        Raises:
            UserError: a log-probability is NaN, the end token's included.
        """
        limits = self.limits
        num_left = limits.max_new_tokens - len(self.ids)
        end = next((i for i, token in enumerate(ids) if token in limits.end_ids), len(ids))
        if isnan(sum(log_probs[: min(end + 1, num_left)])):
            raise UserError(
                f"the log-probabilities of {self.name} came out as NaN: the model's weights are not finite; give "
                "another checkpoint"
            )
        self.is_done = self.is_done or end < len(ids) or num_left <= len(ids)
        num_new = min(end, num_left)
        self.ids += ids[:num_new]
        self.log_probs += log_probs[:num_new]
        new = self.vocabulary.decode(ids[:num_new])
        self.bytes += new
        ends = []
        for stop in limits.stop_strings:
            text = stop.encode()
            at = self.bytes.find(text, max(len(self.prompt.cut), len(self.bytes) - len(new) - len(text) + 1))
            if at >= 0:
                ends.append(at + len(text))
        if ends:
            self.is_done = True
            # What was drawn beyond it depends on how many tokens came at once.
            while len(self.bytes) - len(last := self.vocabulary.decode(self.ids[-1:])) >= min(ends):
                del self.bytes[len(self.bytes) - len(last) :], self.ids[-1], self.log_probs[-1]
                num_new -= 1
        return num_new

    def sample(self) -> Sample:
        """The completion as it is."""
        text = self.bytes[len(self.prompt.cut) :].decode(errors="replace")
        return Sample(self.name, self.number, truncate(text, self.limits.stop_strings), self.ids, self.log_probs)


def truncate(completion: str, stop_strings: Sequence[str]) -> str:
    """Cut a completion off at the first stop string in it."""
    ends = [completion.find(stop) for stop in stop_strings]
    return completion[: min((end for end in ends if end >= 0), default=len(completion))]


def rows_to_draw(
    prompts: Mapping[str, HealedPrompt],
    numbers: Mapping[str, Iterable[int]],
    vocabulary: Vocabulary,
    limits: Limits,
) -> list[Row]:
    """Return the samples of these numbers, longest prompts first and all samples of a prompt together."""
    order = sorted(numbers, key=lambda name: len(prompts[name].ids), reverse=True)
    return [Row(name, number, prompts[name], vocabulary, limits) for name in order for number in numbers[name]]


def row_key(seed: int, name: str, number: int) -> int:
    """Return what a row's random numbers are made of, in 64 bits: its own, whatever it is drawn beside."""
    text = f"{seed} {number} {name}".encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little", signed=True)
