"""Options of a corpus: from the command line and back, and what they refuse."""

import argparse

import pytest

from llama_code.data.filters import FILTERS
from llama_code.data.options import DataOptions, add_options, check_options, written
from llama_code.data.rows import ROW_FILTERS
from llama_code.errors import UserError
from llama_code.training.run_arguments import RunArguments


@pytest.mark.parametrize(
    "options",
    [
        DataOptions(),
        DataOptions("folder with spaces", ["generated", "license"], False, False, "benchmarks", True, 0.5),
    ],
)
def test_written_options_are_read_back(options: DataOptions) -> None:
    parser = argparse.ArgumentParser()
    add_options(parser)
    assert DataOptions(**vars(parser.parse_args(written(options)))) == options


def test_defaults_need_no_words() -> None:
    assert written(DataOptions()) == []
    assert written(RunArguments()) == []  # a run's other arguments are none of the corpus'


def test_known_filters() -> None:
    check_options(DataOptions(filters_off=[*FILTERS, *ROW_FILTERS]))
    assert not {*FILTERS} & {*ROW_FILTERS}
    with pytest.raises(
        UserError, match="--filters_off 'pii' is no filter .* switched off; known are too-large, .*language"
    ):
        check_options(DataOptions(filters_off=["generated", "pii"]))


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_rates(rate: float) -> None:
    with pytest.raises(UserError, match="fim_rate is"):
        check_options(DataOptions(fim_rate=rate))


def test_truth_values(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_options(parser)
    assert parser.parse_args(["--redact", "True"]).redact is True
    with pytest.raises(SystemExit):
        parser.parse_args(["--redact", "perhaps"])
    assert "'perhaps' is neither true nor false" in capsys.readouterr().err
