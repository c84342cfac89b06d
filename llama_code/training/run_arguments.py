"""What train_clm.py takes beside every field of TrainingArguments."""

from dataclasses import dataclass, field

from llama_code.data.options import DataOptions
from llama_code.modeling.kernels import AUTO
from llama_code.training.adapters import DEFAULT_ADAPTERS
from llama_code.training.batches import PAPER_TRAIN_TOKENS


@dataclass
class RunArguments(DataOptions):
    """What is trained on what, and in which batches."""

    config: str = field(default="m1", metadata={"help": "m1 to m5, or a folder with config.json and train.yaml."})
    train_tokens: int = field(default=PAPER_TRAIN_TOKENS, metadata={"help": "Length of the run in tokens."})
    tokenizer: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of a tokenizer instead of the family's."}
    )
    kernels: str = field(
        default=AUTO,
        metadata={"help": "reference, fused, or auto: the fused ones on a GPU where they can run."},
    )
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of weights to start from instead of random ones."}
    )
    peft: str | None = field(
        default=None,
        metadata={"help": "Train adapters beside frozen weights: lora, or qlora, with linear layers in 4 bits."},
    )
    lora_r: int = field(default=DEFAULT_ADAPTERS.r, metadata={"help": "Rank of the adapters' products."})
    lora_alpha: int = field(
        default=DEFAULT_ADAPTERS.alpha, metadata={"help": "The products are multiplied by lora_alpha / lora_r."}
    )
    lora_dropout: float = field(
        default=DEFAULT_ADAPTERS.dropout,
        metadata={"help": "Probability with which an adapter's input is dropped in training."},
    )
    lora_targets: list[str] = field(
        default_factory=lambda: list(DEFAULT_ADAPTERS.targets),
        metadata={"help": "Linear layers of a decoder layer that get adapters."},
    )
    weights_dtype: str | None = field(
        default=None,
        metadata={
            "help": "float32, or bfloat16 with fp32 gradients and an optimizer that rounds stochastically: for models "
            "that do not fit otherwise. Beside adapters it is bfloat16 where that is what is computed in."
        },
    )
    fp8: bool = field(
        default=False,
        metadata={"help": "Multiply in fp8 in the decoder layers, each tensor with a scale of its own."},
    )
    memory_budget: str = field(
        default="auto",
        metadata={"help": "GiB of the GPU that the run may use; auto: all of it. Decides what is recomputed."},
    )
    plan: bool = field(
        default=False,
        metadata={
            "help": "Print what the run would keep in memory, and end; without --train_tokens, for the recipe's batch."
        },
    )
    gpu: str | None = field(
        default=None, metadata={"help": "With --plan: the GPU to plan for, as h100-80 or a number of GiB."}
    )
    z_loss: float = field(
        default=0.0, metadata={"help": "Weight in the loss of the squared log of the softmax's denominator."}
    )
    attn_implementation: str = field(default="sdpa", metadata={"help": "transformers' attention: sdpa, eager, ..."})
    eval_rows: int = field(
        default=32, metadata={"help": "Held-out rows of 2,048 tokens on which bits per byte are measured."}
    )
    batch_tokens: int | None = field(default=None, metadata={"help": "Tokens of one optimizer step."})
    paper_batch_rows: int | None = field(
        default=None, metadata={"help": "Rows of 2,048 tokens of one step in the paper's run of 32,000 tokens."}
    )
    micro_batch_rows: int | None = field(
        default=None, metadata={"help": "Most rows of one forward pass on a GPU; on a CPU it is one."}
    )
    streaming: bool = field(
        default=False,
        metadata={"help": "Read, filter and encode the data while training: for a source too large to prepare."},
    )
    restart: bool = field(
        default=False,
        metadata={"help": "Begin anew in a folder that holds a run; what it holds is moved to its set-aside/."},
    )
    allow_change: list[str] = field(
        default_factory=list,
        metadata={"help": "Arguments that may differ from those of the run that is gone on with, as train_tokens."},
    )
    save_minutes: float | None = field(
        default=None,
        metadata={"help": "Minutes between two checkpoints, 0 for none (default: 10, 0 if --save_steps is given)."},
    )
