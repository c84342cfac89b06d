"""What eval_code.py can be asked, checked in one place."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from llama_code.errors import UserError
from llama_code.evaluation.mbpp import FORMS
from llama_code.evaluation.sampling import MAX_TEMPERATURE, MIN_TEMPERATURE
from llama_code.evaluation.tasks import BENCHMARKS
from llama_code.quantization import PACKAGES

TASKS = ("perplexity", *BENCHMARKS)
PROTOCOL_FILE = "protocol.json"
NEEDS_MODEL = (
    "num_samples",
    "pass_until",
    "max_samples",
    "temperature",
    "top_p",
    "top_k",
    "max_new_tokens",
    "batch_size",
    "quantize",
    "dataset",
)


@dataclass
class EvalArguments:
    """The command line of eval_code.py.

    Raises:
        UserError: values that are out of range or contradict each other.
    """

    tasks: str = field(default="", metadata={"help": f"what to evaluate, separated by commas, of {', '.join(TASKS)}"})
    model: str | None = field(
        default=None,
        metadata={"help": "a folder or Hub id of a causal language model, or a GGUF file or a folder with one"},
    )
    compare: list[str] | None = field(
        default=None, metadata={"help": "two folders of results, or results.json files, whose differences to show"}
    )
    rescore: str | None = field(default=None, metadata={"help": "a samples.jsonl to judge again, instead of a model"})
    dataset: str = field(
        default="local-python",
        metadata={"help": "source whose held-out files perplexity is measured on, as train_clm.py takes it"},
    )
    num_samples: int | None = field(
        default=None, metadata={"help": "completions of each problem; 20 by default, 1 with --temperature 0"}
    )
    pass_until: int | None = field(
        default=None, metadata={"help": "draw more samples of a problem until so many pass, and estimate pass rates"}
    )
    max_samples: int = field(default=1000, metadata={"help": "with --pass_until, most samples of a problem"})
    temperature: float = field(default=0.8, metadata={"help": "divides the logits; 0 takes the likeliest token"})
    top_p: float = field(default=0.95, metadata={"help": "probability mass that is sampled from, in (0, 1]"})
    k: list[int] | None = field(
        default=None, metadata={"help": "the k of pass@k; 1 10 by default, 1 with --temperature 0"}
    )
    benchmark_dir: str | None = field(
        default=None,
        metadata={"help": "folder with the benchmarks' files as published; by default they come from the Hub"},
    )
    mbpp_form: str = field(default="docstring", metadata={"help": f"form of MBPP's prompts: {' or '.join(FORMS)}"})
    limit: int | None = field(
        default=None,
        metadata={"help": "only the first so many problems of a benchmark, and so many files of perplexity"},
    )
    max_new_tokens: int = field(default=256, metadata={"help": "most tokens of a completion"})
    top_k: int = field(default=0, metadata={"help": "how many of the likeliest tokens are sampled from; 0 for all"})
    batch_size: int | None = field(
        default=None,
        metadata={"help": "most completions in work at once; by default what a GPU's memory holds, 64 elsewhere"},
    )
    quantize: str | None = field(
        default=None, metadata={"help": f"keep the model's layers in fewer bits: {' or '.join(PACKAGES)}"}
    )
    seed: int = field(default=0, metadata={"help": "of sampling and of the bootstrap"})
    allow_unsafe_judge: bool = field(
        default=False,
        metadata={"help": "run programs with resource limits alone, with your rights, where they cannot be isolated"},
    )
    copied_from: str | None = field(
        default=None,
        metadata={"help": "source whose training text completions are searched for long copies of, as --dataset"},
    )
    output_dir: str | None = field(
        default=None,
        metadata={"help": "folder for the results; by default runs/eval/MODEL, or 'rescored' beside the samples"},
    )

    def __post_init__(self) -> None:
        if self.compare is not None:
            self._check_compare()
            return
        if not self.tasks:
            raise UserError(f"--tasks is empty; name what to evaluate, of {', '.join(TASKS)}")
        for task in self.task_names:
            if task not in TASKS:
                raise UserError(f"--tasks names {task!r}, which is not a task; known are {', '.join(TASKS)}")
        for name in ("model", "rescore", "output_dir", "benchmark_dir"):
            if getattr(self, name) == "":
                raise UserError(f"--{name} is empty; name one or leave it out")
        if (self.model is None) == (self.rescore is None):
            raise UserError(
                f"--model is {self.model!r} and --rescore is {self.rescore!r}, and just one of them is needed; "
                "give --model to sample from a model or --rescore to judge saved samples"
            )
        for name in ("num_samples", "limit", "max_new_tokens", "batch_size", "pass_until", "max_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name} is {value} and must be at least 1; give a positive number or leave it out")
        if self.temperature != 0 and not MIN_TEMPERATURE <= self.temperature <= MAX_TEMPERATURE:
            raise UserError(
                f"--temperature is {self.temperature} and must be 0, for the likeliest token, or from "
                f"{MIN_TEMPERATURE} to {MAX_TEMPERATURE:g}; give for example 0.8"
            )
        if not 0 <= self.seed < 2**63:
            raise UserError(f"--seed is {self.seed} and must be from 0 to 2**63 - 1; give for example 0")
        if not 0 < self.top_p <= 1:
            raise UserError(f"--top_p is {self.top_p} and must be in (0, 1]; give 1 to sample from all tokens")
        if self.quantize not in (None, *PACKAGES):
            raise UserError(f"--quantize is {self.quantize!r} and must be {' or '.join(PACKAGES)}; name one of them")
        if self.top_k < 0:
            raise UserError(f"--top_k is {self.top_k} and must be 0, to sample from all tokens, or more; give one")
        for k in self.k or ():
            if k < 1:
                raise UserError(f"--k is {k} and must be at least 1; give for example --k 1 10")
        if self.mbpp_form not in FORMS:
            raise UserError(f"--mbpp_form is {self.mbpp_form!r} and must be {' or '.join(FORMS)}; name one of them")
        if self.benchmark_dir is not None and not Path(self.benchmark_dir).is_dir():
            raise UserError(
                f"--benchmark_dir {self.benchmark_dir!r} is not a folder; give the one with the benchmarks' files"
            )
        if self.rescore is None:
            self._settle_samples()
        else:
            self._refuse(NEEDS_MODEL, "--rescore, which draws no samples")
        if self.rescore is not None and "perplexity" in self.task_names:
            raise UserError(
                f"--rescore judges saved samples, and --tasks is {self.tasks!r}; leave out perplexity, which needs a "
                "model"
            )

    def _settle_samples(self) -> None:
        greedy = self.temperature == 0
        if greedy and (self.num_samples or 1) > 1:
            raise UserError(
                f"--num_samples is {self.num_samples} with --temperature 0, where all samples are the same; "
                "leave --num_samples out or give a temperature above 0"
            )
        self.num_samples = self.num_samples or (1 if greedy else 20)
        if greedy and self.pass_until is not None:
            raise UserError(
                f"--pass_until is {self.pass_until} with --temperature 0, where all samples are the same; leave it "
                "out or give a temperature above 0"
            )
        if self.pass_until is not None and self.max_samples < self.num_samples:
            raise UserError(
                f"--max_samples is {self.max_samples} and --num_samples {self.num_samples}, which are drawn in any "
                "case; raise --max_samples"
            )
        self.k = self.k or ([1] if greedy else [1, 10])
        if self.benchmark_names and max(self.k) > self.num_samples:
            raise UserError(
                f"--k is {max(self.k)} with {self.num_samples} samples of each problem, and pass@k needs at least k "
                "samples; raise --num_samples or lower --k"
            )

    @property
    def task_names(self) -> list[str]:
        """The tasks, each once, in the order asked for."""
        return list(dict.fromkeys(name.strip() for name in self.tasks.split(",")))

    @property
    def benchmark_names(self) -> list[str]:
        """The tasks that are judged."""
        return [name for name in self.task_names if name in BENCHMARKS]

    def _check_compare(self) -> None:
        if len(self.compare or ()) != 2:
            raise UserError(f"--compare names {len(self.compare or ())} results and needs two; give two folders")
        self._refuse([option.name for option in fields(self) if option.name != "compare"], "--compare")

    def _refuse(self, names: Sequence[str], beside: str) -> None:
        for option in fields(self):
            value = getattr(self, option.name)
            if option.name in names and value != option.default:
                raise UserError(f"--{option.name} is {value!r} beside {beside}, where it has no use; leave it out")

    @property
    def output_path(self) -> Path:
        """The folder that the results go to."""
        if self.output_dir is not None:
            return Path(self.output_dir)
        if self.rescore is not None:
            return Path(self.rescore).parent / "rescored"
        return Path("runs", "eval", Path(self.model or "").resolve().name.removesuffix(".gguf"))

    def check_output(self) -> None:
        """Refuse to write over earlier results; samples and verdicts of a run that was cut off are taken up.

        Raises:
            UserError: the output folder holds results, or is a file.
        """
        if self.output_path.is_file():
            raise UserError(f"--output_dir {str(self.output_path)!r} is a file; name a folder that is new or empty")
        # a run that was cut off has left its protocol
        cut_off = (self.output_path / PROTOCOL_FILE).exists()
        for name in ("results.json",) if cut_off else ("results.json", "samples.jsonl", "verdicts.jsonl"):
            if (self.output_path / name).exists():
                raise UserError(
                    f"--output_dir {str(self.output_path)!r} already holds {name}, which is not written over; "
                    "name another folder or move that one away"
                )
