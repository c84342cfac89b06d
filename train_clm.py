"""Train a llama-code model: `accelerate launch train_clm.py --config m1`, or plain `python train_clm.py`.

The recipe of a size is recipes/<size>/train.yaml; every field of it and of transformers' TrainingArguments can be
given on the command line.
"""

import gc
import logging
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase, set_seed
from transformers.training_args import OptimizerNames

import llama_code.modeling  # noqa: F401  (registers the models)
from llama_code.data.options import written
from llama_code.data.token_bytes import token_bytes
from llama_code.errors import UserError, run_script
from llama_code.training.adapters import PACKAGES, QLORA, base_model, merged_model
from llama_code.training.arguments import Run, parse_run
from llama_code.training.compiled import attention_name
from llama_code.training.events import Events
from llama_code.training.memory_plan import GIB, budget_bytes, num_parameters
from llama_code.training.model import build_model, check_model
from llama_code.training.optimizers import check_installed, state_bytes, state_remark
from llama_code.training.pushes import Pushes
from llama_code.training.resume import DATA_HASH, FROZEN, SETTINGS_FILE, check_settings, frozen_weights
from llama_code.training.rows import DATA_FILE, PreparedData, RunRows, evenly_spaced, open_prepared
from llama_code.training.run_folder import check_free_space
from llama_code.training.run_record import (
    RECORDED_PACKAGES,
    RUN_FILE,
    git_commit,
    mean_logged_loss,
    resumed_step,
    versions,
    write_json,
)
from llama_code.training.run_requests import RunRequests
from llama_code.training.run_watch import STACKS_FILE, RunWatch
from llama_code.training.stop_signals import StopSignals
from llama_code.training.stream import StreamedData, StreamedRows, StreamRandomState, streamed_data
from llama_code.training.survival import (
    go_back,
    has_initial_evaluation,
    is_stopped,
    look_up,
    newest_step,
    own_folder,
    read_data_state,
    stop,
    with_less_memory,
    write_in_the_end,
)
from llama_code.training.throughput import device_name, flops_per_token, peak_flops
from llama_code.training.trackers import guard_trackers
from llama_code.training.trainer import CodeTrainer

ROOT = Path(__file__).resolve().parent
# Of what the data's own meta.json says, what a run records.
DATA_FIELDS = ("source", "held_out_source", "splits", "read", "dropped", "filters_off", "near_dedup", "decontaminate")
DATA_FIELDS += ("redact", "fim_rate", "packages")
ADAPTER_FOLDER = "adapter"
logger = logging.getLogger("train_clm")


def main() -> None:
    """Train, whatever happens, or say in a sentence what cannot be."""
    run = parse_run(sys.argv[1:], ROOT / "recipes")
    if run.arguments.plan:
        check_model(run)
        print("\n".join([plan_title(run), *memory_lines(run)]))
        return
    if run.arguments.peft == QLORA and find_spec("bitsandbytes") is None:
        raise UserError("--peft qlora needs bitsandbytes, which is not installed; pip install bitsandbytes")
    check_installed(OptimizerNames(run.training_arguments.optim).value)
    is_main = run.training_arguments.process_index == 0
    logging.basicConfig(format="%(message)s", level=logging.INFO if is_main else logging.WARNING)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    with own_folder(run) as events:
        exit_code = train_with_less(run, events)
    if exit_code:
        sys.exit(exit_code)


def train_with_less(run: Run, events: Events) -> int:
    """Train, with less memory where there is not enough before anything was saved; returns the exit code."""
    while True:
        saved_step = newest_step(run.output_dir)
        if run.memory is not None:
            # a plan that was wrong ends here instead of taking what others were promised
            torch.cuda.set_per_process_memory_fraction(budget_bytes(run.arguments.memory_budget, run.card) / run.card)
        try:
            return train(run, events)
        except torch.OutOfMemoryError as error:
            smaller = None if newest_step(run.output_dir) > saved_step else with_less_memory(run, events, error)
            if smaller is None:
                allocated, reserved = (
                    peak() / GIB for peak in (torch.cuda.max_memory_allocated, torch.cuda.max_memory_reserved)
                )
                raise UserError(
                    f"--memory_budget {run.arguments.memory_budget} was not enough, with {allocated:.1f} GiB "
                    f"allocated and {reserved:.1f} reserved at most; free what others hold of the GPU, or give "
                    "--gradient_checkpointing true or a smaller --per_device_train_batch_size"
                ) from error
        # Outside of the error, whose traceback holds what was allocated.
        run = smaller
        torch.compiler.reset()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def train(run: Run, events: Events) -> int:
    """Train, measure, save; returns the exit code, which is not 0 where a signal ended the run."""
    arguments, output_dir = run.training_arguments, run.output_dir
    is_main = arguments.process_index == 0
    is_through, checkpoint = look_up(run, events)
    if is_through:
        logger.info(f"the run in {output_dir} is finished; --restart begins it anew")
        return 0
    tokenizer = load_tokenizer(run.arguments.tokenizer, run.config)
    set_seed(arguments.seed)
    model = build_model(run)
    base = base_model(model)
    kernels = base.kernels
    frozen = frozen_weights(model)
    start_step = resumed_step(checkpoint, run.plan.num_steps)
    if checkpoint is not None:  # before data are prepared, which takes its time
        check_settings(checkpoint, {**run.shared, FROZEN: frozen}, (*run.arguments.allow_change, DATA_HASH))
    with arguments.main_process_first(desc="data preparation"):
        data = streamed_data(run, tokenizer) if run.arguments.streaming else prepared_data(run, tokenizer)
    settings = {**run.shared, FROZEN: frozen, DATA_HASH: data.meta["data_hash"]}

    count = num_parameters(run.config)
    trained, num_frozen = (count, 0) if run.adapters is None else (run.adapters.num_parameters(run.config), count)
    flops = flops_per_token(run.config, trained, run.row_length, num_frozen=num_frozen)
    peak, peak_source = peak_flops(arguments.device)
    if isinstance(data, StreamedData):
        rows: RunRows | StreamedRows = data.train
    else:
        rows = RunRows(data.train, run.arguments.train_tokens, arguments.seed)
    if checkpoint is not None:
        changes = check_settings(checkpoint, settings, run.arguments.allow_change)
        data_state = read_data_state(checkpoint)
        rows.load_state_dict(data_state)
        arguments.eval_on_start = not has_initial_evaluation(checkpoint)
        if data_state["world_size"] != arguments.world_size:
            changes.append(
                f"{data_state['world_size']} processes trained, and {arguments.world_size} do: the batch is the same, "
                "random numbers (as of dropout) and the order of sums are not"
            )
        events.add("resume", step=start_step, checkpoint=str(checkpoint), changes=changes)
        logger.info(f"going on from {checkpoint}, step {start_step:,} of {run.plan.num_steps:,}")
        for change in changes:
            logger.warning(f"  {change}")
    if is_main:
        trained_bytes = sum(x.nbytes for x in model.parameters() if x.requires_grad)
        states = state_bytes(OptimizerNames(arguments.optim).value, arguments.optim_args, trained, 0)
        check_free_space(output_dir, trained_bytes + states, count * base.dtype.itemsize, arguments.save_total_limit)
    batch_rows = run.plan.batch_rows
    pushes = Pushes(arguments, events) if arguments.push_to_hub and is_main else None
    signals = StopSignals()
    requests = RunRequests(signals, run.arguments.save_minutes or 0.0)
    trainer = CodeTrainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        held_out_rows=evenly_spaced(data.held_out, run.arguments.eval_rows),
        byte_lengths=torch.tensor([len(text) for text in token_bytes(tokenizer)]),
        flops_per_token=flops,
        peak_flops=peak,
        z_loss=run.arguments.z_loss,
        events=events,
        requests=requests,
        checkpoint_files=lambda step: {
            SETTINGS_FILE: settings,
            DATA_FILE: {**rows.state_dict(step * batch_rows), "world_size": arguments.world_size},
        },
        describe_rows=lambda step: rows.describe(step * batch_rows, min((step + 1) * batch_rows, len(rows))),
        on_saved=pushes.push_checkpoint if pushes else lambda folder: None,
        processing_class=tokenizer,
    )
    trainer.saver.saved_step = trainer.last_save_step = start_step if checkpoint else None
    trackers = guard_trackers(trainer, events)
    trainer.add_callback(RunWatch(trainer, requests, events, output_dir / STACKS_FILE))
    random_state = StreamRandomState(trainer)
    if isinstance(rows, StreamedRows):
        trainer.add_callback(random_state)
    log_plan(run, count, rows, device_name(arguments.device), f"{peak / 1e12:.3g} TFLOP/s ({peak_source})")
    logger.info(f"  {kernels} kernels, attention {attention_name(base, run.training_arguments.bf16)}")

    started = time.perf_counter()
    num_returns = 0
    with signals:
        while True:
            random_state.checkpoint = None if checkpoint is None else str(checkpoint)
            result = trainer.train(resume_from_checkpoint=random_state.checkpoint)
            trainer.read_skipped(all_steps=True)
            trainer.saver.wait()
            first_skipped = trainer.guard.first_of_many
            if first_skipped is None or is_stopped(trainer, signals):
                break
            checkpoint = go_back(run, rows, events, first_skipped, trainer.state.global_step, num_returns)
            num_returns += 1
            trainer.guard.restart()
        if trainer.state.global_step != run.plan.num_steps and not is_stopped(trainer, signals):
            raise RuntimeError(f"training ended at step {trainer.state.global_step} of {run.plan.num_steps}")
        seconds = time.perf_counter() - started - trainer.evaluation_seconds
        final = {} if is_stopped(trainer, signals) else trainer.evaluate()
        if is_stopped(trainer, signals):
            return stop(trainer, signals, events)
    initial = next(entry for entry in trainer.state.log_history if "eval_bits_per_byte" in entry)
    if isinstance(model, PeftModel) and is_main:
        # The adapter comes first: all that was trained is in it.
        adapter = model
        write_in_the_end(lambda: adapter.save_pretrained(output_dir / ADAPTER_FOLDER), output_dir, events)
        trainer.model = base = merged_model(model, run.config, base.dtype)
    base.config.use_cache = True  # Trainer turns it off, and what is saved is for generation
    write_in_the_end(trainer.save_model, output_dir, events)
    trainer.accelerator.end_training()  # else a thread of the process group may outlive Python, which aborts
    if not is_main:
        return 0
    step_tokens = run.plan.batch_rows * run.row_length
    tokens = min(run.arguments.train_tokens, result.global_step * step_tokens)
    tokenizer_sha256 = sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
    # Of a run that was resumed, the time of the steps since is known.
    new_tokens = tokens - start_step * step_tokens
    record = {
        "size": run.size,
        "num_parameters": count,
        "model_name_or_path": run.arguments.model_name_or_path,
        "peft": run.adapters and {**asdict(run.adapters), "trainable_parameters": trained},
        "dataset": run.arguments.dataset,
        "streaming": run.arguments.streaming,
        "data_hash": data.meta["data_hash"],
        "tokens": tokens,
        "passes_over_data": rows.num_passes,
        "flops": tokens * flops,
        "resumed_from_step": start_step,
        "skipped_steps": trainer.num_skipped,
        "returns": num_returns,
        "seconds": round(seconds, 4),
        "saving_seconds": round(trainer.saving_seconds, 4),
        "tokens_per_second": round(new_tokens / seconds, 1),
        "mfu": new_tokens * flops / seconds / (peak * arguments.world_size),
        "mfu_is_share_of": {"flops": peak, "source": peak_source},
        "train_loss": mean_logged_loss(trainer.state.log_history, start_step),
        "initial": {"bits_per_byte": initial["eval_bits_per_byte"]},
        "final": {"bits_per_byte": final["eval_bits_per_byte"]},
        "device": device_name(arguments.device),
        "num_devices": arguments.world_size,
        "seed": arguments.seed,
        "memory_gib": memory_record(run),
        "recipe": recipe_record(run, kernels),
        "settings": settings,
        "config": base.config.to_dict(),
        "tokenizer": {"name": run.arguments.tokenizer or "tokenizer/", "sha256": tokenizer_sha256},
        "data": {name: data.meta[name] for name in DATA_FIELDS},
        "versions": versions((*RECORDED_PACKAGES, *PACKAGES.get(run.arguments.peft, ()))),
        "git_commit": git_commit(ROOT),
        "date": time.strftime("%Y-%m-%d"),
    }
    write_in_the_end(lambda: write_json(output_dir / RUN_FILE, record), output_dir, events)
    events.add("end", step=result.global_step, bits_per_byte=final["eval_bits_per_byte"])
    logger.info(
        f"bits per byte on held-out Python: {initial['eval_bits_per_byte']:.4f} -> {final['eval_bits_per_byte']:.4f}\n"
        f"{tokens:,} tokens in {seconds:.1f} s; model and {RUN_FILE} in {output_dir}"
    )
    for tracker in trackers:
        tracker.tell()
    if pushes is not None:
        pushes.push_run()
        pushes.finish()
    return 0


def load_tokenizer(name: str | None, config: PreTrainedConfig) -> PreTrainedTokenizerBase:
    """Load the family's tokenizer, or the one that `name` names, and check that it is the model's."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(name or ROOT / "tokenizer")
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"--tokenizer {name!r} cannot be loaded ({reason}); give a folder or a Hub id") from error
    if len(tokenizer) != config.vocab_size:
        raise UserError(
            f"tokenizer {name or 'tokenizer/'!r} has {len(tokenizer)} tokens but the model's vocab_size is "
            f"{config.vocab_size}; they must be equal: change vocab_size in config.json or choose another --tokenizer"
        )
    return tokenizer


def prepared_data(run: Run, tokenizer: PreTrainedTokenizerBase) -> PreparedData:
    """Prepare the data set in a process of its own, whose workers do not hold torch, or find it prepared."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        command = [sys.executable, "-m", "llama_code.data.prepare", "--tokenizer", folder]
        result = subprocess.run(command + written(run.arguments), stdout=subprocess.PIPE, text=True)
    if result.returncode:
        sys.exit(result.returncode)  # it has said why
    return open_prepared(Path(result.stdout.strip()), run.row_length)


def memory_record(run: Run) -> dict[str, float] | None:
    """GiB of the GPU that the run was planned to allocate, allocated and reserved, each at its peak."""
    if run.memory is None:
        return None
    device = run.training_arguments.device
    return {
        "planned": round(run.memory.peak / GIB, 2),
        "allocated": round(torch.cuda.max_memory_allocated(device) / GIB, 2),
        "reserved": round(torch.cuda.max_memory_reserved(device) / GIB, 2),
    }


def recipe_record(run: Run, kernels: str) -> dict:
    """Everything about optimization that can move a result."""
    names = "max_steps learning_rate warmup_steps adam_beta1 adam_beta2 adam_epsilon weight_decay max_grad_norm optim"
    arguments = run.training_arguments
    return {
        **asdict(run.plan),
        "row_length": run.row_length,
        **{name: getattr(arguments, name) for name in (*names.split(), "bf16", "fp16")},
        "lr_scheduler_type": str(arguments.lr_scheduler_type.value),
        "lr_scheduler_kwargs": arguments.lr_scheduler_kwargs,
        "optim_args": arguments.optim_args,
        "weights_dtype": run.arguments.weights_dtype,
        "recomputed_layers": run.memory.recomputed_layers if run.memory else 0,
        "attn_implementation": run.arguments.attn_implementation,
        "kernels": kernels,
        "fp8": run.arguments.fp8,
        "z_loss": run.arguments.z_loss,
        "torch_compile": arguments.torch_compile,
        "gradient_checkpointing": arguments.gradient_checkpointing,
        "eval_rows": run.arguments.eval_rows,
    }


def plan_title(run: Run) -> str:
    """The steps that --plan is for."""
    plan, tokens = run.plan, run.arguments.train_tokens
    passes = f"{plan.gradient_accumulation_steps} pass(es) of {plan.micro_batch_rows} row(s)"
    steps = f"{plan.num_steps:,} steps of {plan.batch_rows * run.row_length:,}, each {passes}"
    return f"{run.size}, {tokens:,} tokens (--train_tokens plans another number): {steps}"


def memory_lines(run: Run) -> list[str]:
    """What is trained, where it is not the weights themselves, and what a GPU keeps, as people read it."""
    lines = []
    if run.adapters is not None:
        count, adapters = run.adapters.num_parameters(run.config), run.adapters
        targets = ", ".join(adapters.targets)
        lines += [f"{adapters.method}: {count:,} parameters are trained, of rank {adapters.r} beside {targets}"]
    if run.memory is not None:
        budget = budget_bytes(run.arguments.memory_budget, run.card) / GIB
        card = run.arguments.gpu or device_name(run.training_arguments.device)
        lines += [f"card {card}: {run.card / GIB:.1f} GiB, of which the run may use {budget:.1f}", *run.memory.lines()]
        lines += state_remark(OptimizerNames(run.training_arguments.optim).value)
    return lines


def log_plan(run: Run, num_parameters: int, rows: RunRows | StreamedRows, device: str, peak: str) -> None:
    """Say what is about to happen, and what was decided without being asked."""
    arguments, plan = run.training_arguments, run.plan
    logger.info(
        f"{run.size}: {num_parameters:,} parameters, {run.arguments.train_tokens:,} tokens of {run.arguments.dataset} "
        f"in {plan.num_steps:,} steps of {plan.batch_rows} rows x {run.row_length} tokens\n"
        f"  {plan.micro_batch_rows} rows a forward pass, {plan.gradient_accumulation_steps} passes a step, "
        f"{arguments.world_size} device(s)\n"
        f"  learning rate {arguments.learning_rate:g}, warmup {arguments.warmup_steps} steps, "
        f"{'bf16' if arguments.bf16 else 'fp16' if arguments.fp16 else 'fp32'} on {device}, MFU is of {peak}"
    )
    if plan.remark:
        logger.info(f"  {plan.remark}")
    for line in memory_lines(run):
        logger.info(f"  {line}")
    if rows.num_passes > 1:
        logger.warning(f"  the data has fewer tokens than the run: it is gone through {rows.num_passes:.2f} times")


if __name__ == "__main__":
    run_script(main)
