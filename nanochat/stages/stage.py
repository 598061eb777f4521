"""The run of a training stage, once and from top to bottom: what base, mid, sft and rl share around the loop.

A stage overrides the methods below `run` that differ: what it learns from, how its model is measured, what is said.
"""

import json
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

import nanochat
from nanochat.checkpoint.checkpoint import (
    Checkpoint,
    check_shared,
    find_best,
    latest_good,
    remove_stale,
    save_checkpoint,
)
from nanochat.config.device_batch import Stage as StageName
from nanochat.config.plan import StagePlan
from nanochat.config.settings import TrainSettings
from nanochat.errors import DataError, NumericalError, StoppedError, UsageError
from nanochat.evals.samples import Sample
from nanochat.files import write_atomically
from nanochat.model.accounting import count_params, flops_per_token
from nanochat.model.config import GPTConfig
from nanochat.model.gpt import GPT
from nanochat.model.optim import MuonAdamW, build_optimizer
from nanochat.paths import TRAIN_STAGES
from nanochat.runtime import name_device, peak_flops
from nanochat.stages import assemble
from nanochat.stages.computing import MemoryWatch, compile_loss, describe_change, describe_computing
from nanochat.stages.fit import fit_batch
from nanochat.stages.inputs import Inputs, continue_inputs, dump_inputs, inputs_path, read_inputs_of_all
from nanochat.stages.job import Job
from nanochat.text import format_seconds
from nanochat.tokenizer.bpe import Tokenizer
from nanochat.training.loop import Event, Pace, Training, TrainState, train
from nanochat.training.metrics import MetricsFile
from nanochat.training.tracking import start_tracking


class Stage(Training):
    """A training stage of a run. Collective: every rank makes one and calls `run`.

    `prepare` of a subclass sets `tokenizer`, `config` (the model) and `plan`; `weights` and `source`, the name of the
    model that they are of, where it does not begin with fresh ones; `notes` for people; `group_bytes` of the largest
    row group of the pretraining text, if it reads any.
    """

    scored_by: ClassVar[str]
    """The metric that measuring leaves, and that chooses the best checkpoint."""
    higher_is_better: ClassVar[bool] = False
    measures_first: ClassVar[bool] = False
    """Whether the model is also measured before the first step."""
    uncompiled: ClassVar[str] = ""
    """Why the model is never compiled, in words; "": it is as the settings say."""

    tokenizer: Tokenizer
    config: GPTConfig
    plan: StagePlan
    model: GPT

    def __init__(self, job: Job, name: str) -> None:
        self.job, self.name, self.say = job, name, job.say
        self.world, self.paths = job.world, job.run.stage(name)
        self.options: TrainSettings = getattr(job.settings, name)
        self.metrics, self.samples = MetricsFile(self.paths.metrics), MetricsFile(self.paths.samples)
        self.weights: dict[str, Tensor] | None = None
        self.source, self.group_bytes = "", 0
        self.notes: list[str] = []

    def run(self) -> dict[str, Any]:
        """Train from where the stage stands to its end; returns the result, which is written last."""
        self.prepare()
        self.memory = MemoryWatch(self.job, self.config, self.group_bytes)
        before = self.restore()
        self.open_records()
        self.begin()
        changed = self.open_data(self.state.cursor)
        if changed:
            self.say(f"{changed}: training continues at about the same place of its epoch, not exactly there")
        self.compute_loss, self.compiled = compile_loss(self.job, self.model, self.uncompiled)
        self.announce(before)
        self.pace = self.set_pace()
        tracker = self.job.settings.runtime.track if self.world.is_main else None
        tracking = self.tracking = start_tracking(tracker, self.paths, self.say)
        try:
            if self.state.step == 0 and self.measures_first:
                self.evaluate()
            train(self, self.job.stop)
        except (NumericalError, StoppedError):  # every rank's at once: the others would not wait for rank 0
            tracking.close(self.say)
            self.world.barrier()
            raise
        finally:
            self.close_data()
            self.job.display.finish()
            tracking.close(self.say)
        return self.finish()

    # What a stage decides.

    @abstractmethod
    def prepare(self) -> None:
        """Open tokenizer and data, plan, and say what cannot be trained. Raises NanochatError."""

    @abstractmethod
    def open_data(self, cursor: dict | None) -> str:
        """Open what is learned from; returns what is not as it was for the cursor, in words."""

    @abstractmethod
    def cursor(self) -> dict:
        """Where the data stands, for `open_data`."""

    def close_data(self) -> None:
        """Let go of the data."""

    @abstractmethod
    def measure(self) -> dict[str, Any] | None:
        """What measuring the model finds, for the metrics; None if there is nothing to measure it on."""

    @abstractmethod
    def sample(self, model: GPT) -> Sequence[Sample]:
        """A few answers of the model as it is now."""

    @abstractmethod
    def describe_data(self) -> dict[str, Any]:
        """Facts for the result, asked at the end, such as the dropped share."""

    def begin(self) -> None:
        """Called once the model is there, before the first step or measurement, also after a resume."""

    def loss(self, ids: Tensor, targets: Tensor, *weights: Tensor) -> Tensor:
        return self.compute_loss(ids, targets, *weights)

    def describe_extent(self) -> str:
        """What the steps are, in words."""
        steps, tokens = self.num_steps, self.plan.total_batch_tokens
        each = f"{self.plan.num_microbatches} micro-batches a step and device"
        return f"{steps:,} steps of {tokens:,} tokens = {steps * tokens:,} tokens, {each}"

    def describe_step(self) -> dict[str, Any]:
        """Facts for the record of a step that has just been taken."""
        return {}

    def describe_plan(self) -> dict[str, Any]:
        """`plan.json`."""
        return asdict(self.plan) | {"nanochat_version": nanochat.__version__}

    # What all stages do in the same way.

    @property
    def num_steps(self) -> int:
        assert self.plan.num_steps is not None
        return self.plan.num_steps

    def progress(self, step: int, phase: str) -> None:
        self.job.progress(step, phase)

    def open_source(self) -> None:
        """Start from the last model of the stage before: its weights, config and tokenizer."""
        before = TRAIN_STAGES[TRAIN_STAGES.index(self.name) - 1]
        found = self.world.ask_main(lambda: assemble.find_source(self.job, before))
        source, checkpoint = assemble.load_newest(found, self.say, self.world)
        self.tokenizer, self.source = assemble.open_tokenizer(self.job), str(source)
        assemble.check_tokenizer(checkpoint.meta, self.tokenizer, self.source)
        self.config = assemble.read_config(checkpoint.meta, self.source)
        self.weights = checkpoint.model

    def fit_rows(self) -> None:
        """Find the rows of a micro-batch, once the model is known."""
        job = self.job.with_settings("runtime", compile=False) if self.uncompiled else self.job
        self.job = fit_batch(job, cast(StageName, self.name), self.config)

    def restore(self) -> dict[str, Any]:
        """Model, optimizer and state of the newest good checkpoint, or fresh ones; returns what computed it."""
        job, world, options = self.job, self.world, self.options
        check_shared(self.paths, world)
        if world.is_main:
            remove_stale(self.paths)
        world.barrier()
        try:
            found = latest_good(self.paths, self.say, world=world)
        except DataError:  # nothing is left of what the result speaks of: the stage is to be trained again
            if world.is_main:
                self.paths.result.unlink(missing_ok=True)
            raise
        self.model = assemble.build_model(self.config, world.device, job.dtype)
        if found is not None:
            self._check_same(found[1])
            assemble.load_weights(self.model, found[1].model, f"{job.run.name}/{self.name}@{found[0]}")
            self.say(f"continuing {self.name} from step {found[0]}")
        elif self.weights is not None:
            assemble.load_weights(self.model, self.weights, self.source)
        else:
            self.model.init_weights(job.settings.runtime.seed)
        self.optimizer: MuonAdamW = build_optimizer(
            self.model,
            matrix_lr=options.matrix_lr * options.lr_scale,
            embedding_lr=options.embedding_lr * options.lr_scale,
            head_lr=options.head_lr * options.lr_scale,
            weight_decay=options.weight_decay,
            rank=world.rank,
            world_size=world.world_size,
            dtype=job.dtype,  # who asks for float32 gets it in Muon too: only then do ranks repeat a loss to 1e-6
        )
        torch.manual_seed(job.settings.runtime.seed)
        self.state = TrainState()
        if found is None:
            return {}
        self.optimizer.load_named_state(found[1].optimizer)
        self.state = TrainState.from_dict(found[1].state)
        return found[1].meta.get("computed_by", {})

    def open_records(self) -> None:
        """Cut the records back to the step of the checkpoint; write the plan and what the stage depends on."""
        job, world = self.job, self.world
        now = read_inputs_of_all(job, self.name)
        self.inputs: Inputs = world.ask_main(lambda: continue_inputs(job.run, self.name, now, self.state.step))
        for change in self.inputs.changes:
            self.say(f"warning: {change}; the result says so")
        if world.is_main:
            self.metrics.truncate(self.state.step)
            self.samples.truncate(self.state.step)
            write_atomically(self.paths.plan, json.dumps(self.describe_plan(), indent=1))
            write_atomically(inputs_path(job.run, self.name), dump_inputs(self.inputs))
            self.paths.result.unlink(missing_ok=True)
        world.barrier()
        self.state.best = world.ask_main(lambda: min(self.metrics.values("val_bpb").values(), default=None))

    def announce(self, computed_by: dict[str, Any]) -> None:
        """Say what is going to be trained, on what, and how far it is. computed_by: of the checkpoint."""
        job, config, compiled = self.job, self.config, self.compiled()
        self.computing = describe_computing(job, compiled.startswith("yes"))
        change = describe_change(computed_by, self.computing, job.resume_command)
        if change and self.state.step < self.num_steps:
            self.say(change)
        self.say(
            f"{self.name}: {config.n_layer} layers, width {config.n_embd}, context {config.context}, "
            f"vocabulary {config.vocab_size:,}; {count_params(config)['total'] / 1e6:,.1f}M parameters"
        )
        self.say(
            f"device {name_device(self.world.device)} x {self.world.world_size}, "
            f"{job.dtype_name} ({job.dtype_reason}); compiled: {compiled}"
        )
        for text in (self.describe_extent(), *self.notes):
            self.say(text)
        if self.state.step:
            self.say(f"{self.state.step:,} steps and {format_seconds(self.state.seconds)} are done")
        if self.state.step >= self.num_steps:
            self.say(f"{self.name} already has its {self.num_steps} steps")

    def set_pace(self) -> Pace:
        rule, options = self.job.settings.checkpoint, self.options
        return Pace(
            self.num_steps,
            options.warmup,
            options.warmdown,
            options.grad_clip,
            self.job.resume_command,
            save_every=rule.every_steps,
            save_seconds=rule.every_seconds,
            deterministic=self.job.is_deterministic,
            log_every=self.job.settings.runtime.log_every,
            flops_per_token=float(flops_per_token(self.config)),
            peak_flops=peak_flops(self.world.device, self.job.dtype),
        )

    def events(self) -> Sequence[Event]:
        return (
            Event("evaluate", self.options.eval_every, self.evaluate),
            Event("sample", self.options.sample_every, self.write_samples),
        )

    def evaluate(self) -> None:
        """Measure the model, unless the records have this step's score already."""
        step = self.state.step
        if self.world.ask_main(lambda: self.metrics.value_at(step, self.scored_by) is not None):
            return
        self.model.eval()
        record = self.measure()
        if record is None:
            return
        if self.world.is_main:
            self.metrics.append({"step": step, **record})
        self.world.barrier()

    def write_samples(self) -> None:
        step = self.state.step
        if not self.world.is_main or any(record["step"] == step for record in self.samples.read()):
            return
        self.model.eval()
        for sample in self.sample(self.model.cast_weights()):
            self.samples.append({"step": step, **sample.to_dict()})
            self.say(f"step {step}: {sample.prompt!r} -> {sample.text!r}")

    def log(self, record: dict[str, Any]) -> None:
        record |= self.describe_step()
        if self.world.is_main:
            self.metrics.append(record)
            self.tracking.check(self.say)
            self.job.display.show_step(self.name, record, self.num_steps)
        self.memory.say_once()

    def save(self) -> None:
        step, world, rule = self.state.step, self.world, self.job.settings.checkpoint
        if world.ask_main(lambda: step in self.paths.steps()):
            return
        meta = {
            "stage": self.name,
            "step": step,
            "config": self.config.to_dict(),
            "tokenizer_hash": self.tokenizer.hash,
            "nanochat_version": nanochat.__version__,
            "source": self.source,
            "computed_by": self.computing,
        }
        self.state.cursor = self.cursor()
        best = None
        if world.is_main:
            self.metrics.sync()
            best = self.find_best()
        save_checkpoint(
            self.paths,
            step,
            self.model.state_dict() if world.is_main else {},
            self.optimizer.named_state(),
            self.state.to_dict(),
            meta,
            rule.keep,
            world,
            keep_every=rule.keep_every,
            best=best if rule.keep_best else None,
        )

    def find_best(self) -> int | None:
        """The best checkpoint by what was measured; None if none was."""
        sign = -1 if self.higher_is_better else 1
        scores = {step: sign * value for step, value in self.metrics.values(self.scored_by).items()}
        return find_best(self.paths.steps(), scores)

    def finish(self) -> dict[str, Any]:
        """Write `result.json`, whose presence means done."""
        job, state = self.job, self.state
        memory = self.memory.close()
        val_bpb, best_checkpoint = self.world.ask_main(  # the file is rank 0's
            lambda: (self.metrics.value_at(state.step, "val_bpb"), self.find_best())
        )
        result = {
            "stage": self.name,
            "step": state.step,
            "tokens": state.tokens,
            "seconds": round(state.seconds, 3),
            "loss": state.smoothed_loss,
            "val_bpb": val_bpb,
            "best_val_bpb": state.best,
            "best_checkpoint": best_checkpoint,
            "skipped": state.skipped,
            "tokens_per_second": round(state.tokens / state.seconds, 1) if state.seconds else None,
            "num_params": count_params(self.config)["total"],
            "source": self.source,
            "device": name_device(self.world.device),
            "world_size": self.world.world_size,
            "dtype": job.dtype_name,
            "dtype_reason": job.dtype_reason,
            "compiled": self.compiled(),
            "device_batch_size": self.plan.device_batch_size,
            **memory,
            "tokenizer_hash": self.tokenizer.hash,
            "nanochat_version": nanochat.__version__,
            **({"data_changes": list(self.inputs.changes)} if self.inputs.changes else {}),
            **self.describe_data(),
        }
        if self.world.is_main:
            write_atomically(self.paths.result, json.dumps(result, indent=1))
        self.world.barrier()
        return result

    def _check_same(self, checkpoint: Checkpoint) -> None:
        name = f"{self.job.run.name}/{self.name}"
        assemble.check_tokenizer(checkpoint.meta, self.tokenizer, name)
        before, now = checkpoint.meta.get("config") or {}, self.config.to_dict()
        changed = sorted(key for key in now if before.get(key) != now[key])
        if changed:
            differences = ", ".join(f"{key} was {before.get(key)}, now {now[key]}" for key in changed)
            raise UsageError(
                f"{name} cannot continue with another model: {differences}", "train in a new run with --run NAME"
            )
