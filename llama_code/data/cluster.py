"""The same stages on other machines, by datatrove: `python -m llama_code.data.cluster --executor slurm ...`.

All machines see one folder, `$LLAMA_CODE_CACHE`. A task whose result is there is done, whoever did it, so a run that
lost a machine is finished by the same command, and the corpus is the same byte for byte as one machine's.
"""

import argparse
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from llama_code.data import stages
from llama_code.data.finish import META_FILE, finish
from llama_code.data.options import DataOptions, add_options
from llama_code.data.prepare import begin, make_plan, writing
from llama_code.data.stages import Plan
from llama_code.errors import UserError, run_script

EXECUTORS = ("local", "slurm", "ray")


class Stage:
    """A stage as a step of a datatrove pipeline: rank i of n does the tasks i, i + n, i + 2n, ...

    Args:
        task: called with the plan, and with a shard where there are several.
        plan: of the preparation.
        shards: of the stage; None where it is one task.
    """

    def __init__(self, task: Callable[..., None], plan: Plan, shards: range | None) -> None:
        self.task, self.plan, self.shards = task, plan, shards

    def __call__(self, data: Iterable[Any] | None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Do the tasks of a rank; nothing flows from stage to stage but files."""
        if self.shards is None:
            self.task(self.plan)
        for shard in (self.shards or ())[rank::world_size]:
            self.task(self.plan, shard)
        yield from ()


def pipelines(plan: Plan) -> list[tuple[str, Stage, int]]:
    """Return name, step and number of tasks of each stage, in order."""
    every = range(plan.num_shards)
    return [
        ("screen", Stage(stages.screen_task, plan, every), len(every)),
        ("select", Stage(stages.select_task, plan, None), 1),
        ("encode", Stage(stages.encode_task, plan, every), len(every)),
        ("finish", Stage(finish, plan, None), 1),
    ]


def run(plan: Plan, executor: str, num_workers: int, settings: dict[str, Any]) -> None:
    """Do the stages one after the other, or have them queued so.

    Args:
        plan: of the preparation, begun.
        executor: "local" for processes of this machine, "slurm", or "ray" for the cluster that is running.
        num_workers: how many tasks of a stage are done at once.
        settings: of datatrove's executor, such as Slurm's partition and time.
    """
    from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor

    # our own results tell what is done: datatrove's marks would outlive them
    settings = {**settings, "skip_completed": False}
    kinds = {"local": LocalPipelineExecutor, "slurm": SlurmPipelineExecutor, "ray": RayPipelineExecutor}
    jobs: list[Any] = []
    for name, stage, num_tasks in pipelines(plan):
        # beside the work and not in it: the last stage removes that
        logs = f"{plan.work}.logs/{name}"
        before = jobs[-1] if jobs else None
        jobs.append(
            kinds[executor]([stage], num_tasks, workers=num_workers, logging_dir=logs, depends=before, **settings)
        )
    jobs[-1].run()  # starts first what it depends on


def main() -> None:
    """Prepare a source by a cluster and print the folder that holds it, or will when Slurm has run its jobs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, type=Path, help="folder with tokenizer.json")
    parser.add_argument("--executor", required=True, choices=EXECUTORS)
    parser.add_argument("--workers", type=int, default=1, help="tasks that are done at once")
    parser.add_argument("--partition", help="of Slurm")
    parser.add_argument("--time", help="limit of a task, as Slurm writes it, such as 10:00:00")
    add_options(parser)
    arguments = vars(parser.parse_args())
    tokenizer, executor, num_workers = (arguments.pop(name) for name in ("tokenizer", "executor", "workers"))
    settings = {name: arguments.pop(name) for name in ("partition", "time")}
    given = [value is not None for value in settings.values()]
    if (not all(given)) if executor == "slurm" else any(given):
        raise UserError(
            f"--executor {executor} is given with --partition {settings['partition']} and --time {settings['time']}, "
            "which slurm needs and the others do not take; give both or leave them out"
        )
    if num_workers < 1:
        raise UserError(f"--workers is {num_workers} and must be at least 1; give how many tasks are done at once")
    if executor == "slurm" and shutil.which("sbatch") is None:
        raise UserError("--executor slurm needs sbatch, which is not on this machine; run it where jobs are submitted")
    plan, _ = make_plan(DataOptions(**arguments), tokenizer)
    more = {**settings, "venv_path": os.environ.get("VIRTUAL_ENV")} if executor == "slurm" else {}
    with writing(plan):
        if not Path(plan.final, META_FILE).exists():
            begin(plan, tokenizer)
            run(plan, executor, num_workers, more)
    print(plan.final)


if __name__ == "__main__":
    run_script(main)
