"""How a training command, `distill` or `pretrain`, opens its run folder and leaves."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from distill.config import AnyConfig, DistillConfig, PretrainConfig, dump_config
from distill.config.blocks import as_recorded
from distill.config.precision import settled
from distill.runtime.checkpoints import latest_checkpoint, verify_checkpoint
from distill.runtime.exits import PREEMPTED
from distill.runtime.messages import say, warn
from distill.runtime.run_folder import RunFolder, check_new_folder
from distill.runtime.world import World
from distill.training.engines import rehearse
from distill.training.loop import Outcome
from distill.training.tracking import check_wandb
from teachers.files import publish


def open_run(run: RunFolder, config: AnyConfig, world: World, resume: bool, allow_changes: bool) -> AnyConfig:
    """Check, before anything is loaded, that a new run folder can be made, or that this one can be resumed.

    What other libraries are given is tried first: where they refuse it, no folder is in the way of the next start.

    Returns:
        The config with its precision `settled`, and its blocks, as a resumed run has them, on every process.

    Raises:
        UserError: it can not; see `check_wandb`, `rehearse`, `check_new_folder`, `RunFolder.reopen` and
            `verify_checkpoint`.
    """
    world.on_main(lambda: check_wandb(config.train.wandb))
    rehearse(config.deepspeed, config.train, world)

    def check() -> AnyConfig:
        if not resume:
            check_new_folder(run.path)
            return settled(config)
        same = settled(config, run.started_with())
        if isinstance(same, DistillConfig):
            same = as_recorded(same, run.started_with())
        run.reopen(dump_config(same), allow_changes)
        if (checkpoint := latest_checkpoint(run)) is not None:
            verify_checkpoint(checkpoint)
        return same

    return world.on_main(check)


def create_run(
    run: RunFolder,
    config: DistillConfig | PretrainConfig,
    tokenizer: PreTrainedTokenizerBase,
    world: World,
    resume: bool,
) -> None:
    """Make the folder of a new run, now that all input is known to be right; or complete that of a killed one."""

    def create() -> None:
        if not resume:
            run.create(dump_config(config))
        run.checkpoints.mkdir(exist_ok=True)
        if not run.tokenizer.exists():
            publish(run.tokenizer, tokenizer.save_pretrained)

    world.on_main(create)


def leave(run: RunFolder, world: World, outcome: Outcome) -> None:
    """Say how the training ended.

    Raises:
        SystemExit: with code `PREEMPTED`, if it is to be resumed.
    """
    world.finish()
    if world.is_main and outcome.stopped:
        warn(outcome.stopped, "stopped early")
    if outcome.preempted:
        if world.is_main:
            say(f"terminated after a checkpoint; continue {run.path} with --resume")
        raise SystemExit(PREEMPTED)
