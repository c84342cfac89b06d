"""The command line: recipes as design tables say, overrides, and one sentence for what cannot be."""

import json
from pathlib import Path

import pytest

from llama_code.errors import UserError
from llama_code.training.arguments import Run, parse_run

RECIPES = Path(__file__).parents[2] / "recipes"


def parse(*argv: str) -> Run:
    return parse_run([*argv, "--use_cpu", "true"], RECIPES)


@pytest.mark.parametrize(
    ("size", "num_parameters", "learning_rate", "batch_tokens", "paper_batch_rows"),
    [
        ("m1", 10_128_960, 1.5e-3, 2**16, 1),
        ("m2", 99_799_680, 8.7e-4, 2**17, 1),
        ("m3", 496_986_880, 5.8e-4, 2**18, 2),
        ("m4", 3_012_197_376, 3.7e-4, 2**19, 2),
        ("m5", 7_012_110_336, 3.0e-4, 2**20, 4),
    ],
)
def test_recipes(
    size: str, num_parameters: int, learning_rate: float, batch_tokens: int, paper_batch_rows: int
) -> None:
    run = parse("--config", size)
    assert run.size == size
    assert run.training_arguments.learning_rate == learning_rate
    assert learning_rate == pytest.approx(3e-4 * (7e9 / num_parameters) ** 0.25, rel=0.04)
    assert run.arguments.batch_tokens == batch_tokens
    assert run.plan.batch_rows == paper_batch_rows and run.plan.num_rows == 16
    assert parse("--config", size, "--train_tokens", str(10**10)).plan.batch_rows * 2048 == batch_tokens


def test_the_papers_protocol_is_the_default() -> None:
    run = parse()
    arguments = run.training_arguments
    assert run.size == "m1" and run.arguments.train_tokens == 32_000 and run.arguments.dataset == "local-python"
    assert (arguments.adam_beta1, arguments.adam_beta2, arguments.weight_decay) == (0.9, 0.95, 0.1)
    assert arguments.max_grad_norm == 1.0 and arguments.warmup_steps == 2 and arguments.seed == 0
    assert arguments.lr_scheduler_type == "cosine_with_min_lr"
    assert arguments.lr_scheduler_kwargs == {"min_lr_rate": 0.1}
    assert parse("--lr_scheduler_type", "cosine").training_arguments.lr_scheduler_kwargs is None
    assert not arguments.bf16 and arguments.output_dir == "runs/m1"


def test_any_field_can_be_overridden() -> None:
    run = parse("--learning_rate", "1e-4", "--adam_beta2", "0.99", "--warmup_steps", "5", "--output_dir=elsewhere")
    arguments = run.training_arguments
    assert (arguments.learning_rate, arguments.adam_beta2, arguments.warmup_steps) == (1e-4, 0.99, 5)
    assert arguments.output_dir == "elsewhere"


@pytest.mark.parametrize("argv", [["--batch_tokens=4096"], ["--batch-tokens", "4096"], ["--batch_tokens", "4096"]])
def test_every_spelling_counts_as_asked(argv: list[str]) -> None:
    assert parse(*argv).plan.batch_rows == 2


def test_checkpoints_go_by_the_clock_or_by_steps() -> None:
    assert parse().training_arguments.save_strategy == "no" and parse().arguments.save_minutes == 10
    assert parse("--save_minutes", "3", "--save_steps", "9").arguments.save_minutes == 3
    assert parse("--save_strategy", "no").arguments.save_minutes == 0
    assert parse("--save_strategy", "steps").training_arguments.save_strategy == "steps"
    assert parse("--save_steps", "5").training_arguments.save_strategy == "steps"


def write_config(folder: Path, recipe: str | bytes | None, **fields: object) -> str:
    config = json.loads((RECIPES / "m1" / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))
    if recipe is not None:
        (folder / "train.yaml").write_bytes(recipe.encode() if isinstance(recipe, str) else recipe)
    return str(folder)


def test_a_folder_is_a_size_of_ones_own(tmp_path: Path) -> None:
    recipe = (RECIPES / "m1" / "train.yaml").read_text() + "weight_decay: 0.2\nadam_epsilon: 1e-9\n"
    run = parse("--config", write_config(tmp_path, recipe, max_position_embeddings=512), "--train_tokens", "512")
    assert run.row_length == 512 and run.plan.num_rows == 1
    assert run.training_arguments.weight_decay == 0.2 and run.training_arguments.adam_epsilon == 1e-9


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--config", "m9"],
            r"--config 'm9' is neither a size \(m1, m2, m3, m4, m5\) nor a folder with a config.json",
        ),
        (["--train_tokens", "2000"], "--train_tokens 2000 is less than one row of 2048 tokens"),
        (["--train_tokens", "many"], "argument --train_tokens.*: invalid int value: 'many'; .* --help lists"),
        (["--no_such_field", "1"], "unrecognized arguments: --no_such_field 1; .* --help lists the arguments"),
        (["--config"], "argument --config: expected one argument; .* --help lists the arguments"),
        (["--num_train_epochs", "3"], "--num_train_epochs 3.0 contradicts --train_tokens"),
        (["--batch_tokens", "0"], "--batch_tokens 0 is no positive whole number"),
        (["--micro_batch_rows", "-3"], "--micro_batch_rows -3 is no positive whole number"),
        (["--eval_on_start", "false"], "--eval_on_start false leaves run.json without"),
        (["--learning_rate", "-1"], "--learning_rate -1.0 is no positive number"),
        (["--learning_rate", "nan"], "--learning_rate nan is no positive number"),
        (["--seed", "-1"], "--seed -1 is outside 0 to 2"),
        (["--restart", "--resume_from_checkpoint", "x"], "--restart contradicts --resume_from_checkpoint 'x'; leave"),
        (["--allow_change", "optim"], "--allow_change 'optim' is nothing that may change on the way; it may be"),
        (["--save_minutes", "-1"], "--save_minutes -1.0 is not 0 or more"),
        (["--train_sampling_strategy", "random"], "--train_sampling_strategy and --ignore_data_skip would give other"),
        (["--ignore_data_skip", "true"], "--train_sampling_strategy and --ignore_data_skip would give other rows"),
        (["--save_only_model", "true"], "--save_only_model true would write checkpoints that no run can go on from"),
        (["--auto_find_batch_size", "true"], "--auto_find_batch_size true would change the batch; leave it out"),
        (["--dataset", "x", "--max_steps", "99"], "--max_steps 99 is more than the 16 steps"),
        (["--eval_rows", "0"], "--eval_rows 0 is not positive; ask for 1 or more"),
        (["--z_loss", "-1"], "--z_loss -1.0 is not 0 or a positive number; give one such as 1e-4, or none"),
        (
            ["--label_smoothing_factor", "0.1"],
            "--label_smoothing_factor 0.1 would train on labels that are not shifted",
        ),
        (["--z_loss", "nan"], "--z_loss nan is not 0 or a positive number"),
        (["--warmup_steps", "-5"], "warmup_steps.*an argument of TrainingArguments; correct it"),
        (["--lr_scheduler_type", "wavy"], "wavy"),
    ],
)
def test_errors(argv: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(*argv)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("learning_rate: [", "train.yaml' is no YAML .*; write one field a line"),
        ("- 1\n", "train.yaml' is a list; a recipe has one 'field: value' a line"),
        (
            "learnin_rate: 1.0e-3\n",
            "train.yaml' has the field 'learnin_rate', which no argument has; correct or remove",
        ),
        ("learning_rate: [1, 2]\n", "train.yaml' has a list as learning_rate; give one value"),
        ("config: m2\n", "train.yaml' has the field 'config'"),
        (b"learning_rate: \xff\n", "train.yaml' is no YAML"),
        ("learning_rate: 1.0e-3\n", "has no batch_tokens in its train.yaml; add it or give --batch_tokens"),
        (None, "has no batch_tokens in its train.yaml"),
        (
            "batch_tokens: 4096\npaper_batch_rows: 1\nmicro_batch_rows: 1\n",
            "has no learning_rate in its train.yaml; add it or give --learning_rate",
        ),
    ],
)
def test_errors_of_a_recipe(tmp_path: Path, recipe: str | bytes | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse("--config", write_config(tmp_path, recipe))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "config.json' is no model configuration"),
        ('{"model_type": "no-such"}', "no-such"),
        ('{"model_type": "gpt2"}', "has the model_type 'gpt2'; this trains 'llama_code' alone"),
        ('{"model_type": "llama_code", "hidden_size": "x"}', "is no model configuration .*hidden_size"),
        ('{"model_type": "llama_code", "num_key_value_heads": 2}', "num_attention_heads=3 is not a multiple"),
        ('{"model_type": "llama_code", "num_attention_heads": 0}', "num_attention_heads=0 is not positive"),
    ],
)
def test_errors_of_a_config(tmp_path: Path, text: str, message: str) -> None:
    write_config(tmp_path, (RECIPES / "m1" / "train.yaml").read_text())
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=message):
        parse("--config", str(tmp_path))
