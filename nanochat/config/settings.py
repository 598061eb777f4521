"""The schema of a preset: every wish a user can state, with its default, bounds and help.

Knows no files and no environment (see config/load.py) and no arithmetic (see config/plan.py).
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

GPT4_STYLE_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
MINUTES = r"^[0-9]+(\.[0-9]+)? ?(m|min|minutes)$"


class Section(BaseModel):
    """A table of a preset. Unknown keys are errors; values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ModelSettings(Section):
    """The architecture: depth is the one dial."""

    depth: int = Field(default=20, ge=1, le=256)
    """Transformer blocks; width is 64 x depth and the number of heads follows from it."""
    n_kv_head: int | None = Field(default=None, ge=1)
    """Key and value heads; must divide the number of heads. Unset: as many as heads."""
    context: int = Field(default=2048, ge=8)
    """Tokens of a training row, and of a conversation with the model."""


class TokenizerSettings(Section):
    """The byte-level BPE."""

    kind: Literal["rustbpe", "huggingface"] = "rustbpe"
    """Implementation; both give the same ids from the same merges."""
    vocab_size: int = Field(default=50304, ge=266)
    """256 bytes + merges + 9 special tokens."""
    train_chars: int = Field(default=500_000_000, ge=1)
    """Characters of the pretraining data that the trainer sees."""
    doc_cap: int = Field(default=10_000, ge=1)
    """Characters of one document that the trainer sees; more, if the text ends before train_chars."""
    pattern: str = GPT4_STYLE_PATTERN
    """Splitting pattern; digits are taken two at a time so that numbers do not fill a small vocabulary."""


class DataSettings(Section):
    """The pretraining text."""

    dataset: str = "fineweb-edu"
    """A folder under $NANOCHAT_HOME/data: `demo`, `fineweb-edu`, or a name given to `nanochat download import`."""
    packing: Literal["cut", "crop"] = "cut"
    """Where a document does not fit its row, its rest goes on in a later row ("cut") or is thrown away ("crop": the
    usual best fit, for training and bits per byte, to compare with numbers that were made that way)."""


class BatchSettings(Section):
    """How many tokens make a step, and how many rows fit on a device."""

    total_tokens: int = Field(default=524_288, ge=1)
    """Tokens of one optimizer step over all devices, reached by gradient accumulation."""
    device_batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = 32
    """Rows of one forward pass on one device, or "auto": the most that fit, found when a stage starts. A number of
    a preset or the default is lowered if it does not divide the step; yours is refused."""


class TrainSettings(Section):
    """What every training stage has in common."""

    matrix_lr: float = Field(default=0.02, gt=0, le=1e6)
    """Muon's rate for the matrices inside the blocks."""
    embedding_lr: float = Field(default=0.2, gt=0, le=1e6)
    """AdamW's rate for the embedding, scaled by (n_embd / 768)^-0.5."""
    head_lr: float = Field(default=0.004, gt=0, le=1e6)
    """AdamW's rate for the head, scaled by (n_embd / 768)^-0.5."""
    lr_scale: float = Field(default=1.0, gt=0, le=1e6)
    """Multiplies the three rates: 0.02 for sft."""
    weight_decay: float = Field(default=0.0, ge=0, le=1e6)
    """Decoupled weight decay of embedding, head and matrices."""
    warmup: float = Field(default=0.0, ge=0, le=1)
    """Share of the steps over which the rates rise from 0."""
    warmdown: float = Field(default=0.2, ge=0, le=1)
    """Share of the steps, at the end, over which the rates fall linearly to 0."""
    grad_clip: float = Field(default=1.0, gt=0)
    """Global norm that gradients are clipped to."""
    num_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps; unset: from the other horizon, or (mid, sft) from the epochs."""
    eval_every: int = Field(default=250, ge=0)
    """Steps between two measurements of validation bits per byte; 0: only at the end."""
    sample_every: int = Field(default=0, ge=0)
    """Steps between two samples of the model; 0: only at the end."""


class TextSettings(TrainSettings):
    """What the stages that learn from written text have in common."""

    eval_tokens: int = Field(default=10_485_760, ge=1)
    """Validation tokens of one measurement; never depends on batch size or devices."""


class BaseSettings(TextSettings):
    """Pretraining."""

    flops: float | None = Field(default=None, gt=0)
    """Horizon as a compute budget."""
    tokens_per_param: float = Field(default=20.0, gt=0)
    """Horizon where neither num_steps nor flops is set."""


class FinetuneSettings(TextSettings):
    """Midtraining and supervised fine-tuning."""

    mixture: list[str] = []
    """Tasks as `name`, `name:stop`, `name:start:stop:step` or `name*times`, for example `spelling:5000`,
    `gsm8k:0:7000:2`, `identity*100`; your own as `custom:FILE.jsonl` or `FILE.py:Class`."""
    epochs: float = Field(default=1.0, gt=0)
    """Passes over the mixture where num_steps is unset."""
    overlong: Literal["drop", "truncate", "error"] = "truncate"
    """What to do with conversations longer than the context; counted and said."""
    total_tokens: int | None = Field(default=None, ge=1)
    """Tokens of one step of this stage; unset: batch.total_tokens."""
    replay: float = Field(default=0.0, ge=0, lt=1)
    """Share of the rows that are pretraining text instead of conversations, so that the model does not forget it."""


class MidSettings(FinetuneSettings):
    """Midtraining: conversations and tool calls at the base rates."""


class SftSettings(FinetuneSettings):
    """Supervised fine-tuning."""

    lr_scale: float = Field(default=0.02, gt=0, le=1e6)
    """Multiplies the three rates: small, for the model keeps what it knows."""


class RlSettings(TrainSettings):
    """Reinforcement learning: answers that the model samples itself, the right ones made more likely."""

    task: str | None = None
    """The task to practise on, as `name` or `name:stop`; generative and graded. Unset: the stage is left out."""
    epochs: float = Field(default=1.0, gt=0)
    """Passes over the questions where num_steps is unset."""
    questions_per_step: int = Field(default=16, ge=1)
    """Questions of one step, over all devices."""
    samples_per_question: int = Field(default=16, ge=2)
    """Answers to each; an answer's advantage is its reward less the mean of its question's."""
    temperature: float = Field(default=1.0, gt=0)
    """Of sampling. The gradient is that of temperature 1 whatever stands here."""
    top_k: int | None = Field(default=50, ge=1)
    """Sample from the k most likely tokens; unset: from all."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Longest answer in tokens, tool output included; one that is cut there counts as truncated."""
    batch_size: int = Field(default=128, ge=1)
    """Answers of one device that are sampled at once: slots of the engine."""
    lr_scale: float = Field(default=0.05, gt=0, le=1e6)
    """Multiplies the three rates: too large a one is seen in pass@1 that falls."""
    warmdown: float = Field(default=1.0, ge=0, le=1)
    """Share of the steps, at the end, over which the rates fall linearly to 0; 1: from the first step on."""
    eval_every: int = Field(default=60, ge=0)
    """Steps between two measurements of pass@k on test questions; also before the first and after the last."""
    eval_questions: int = Field(default=128, ge=1)
    """Test questions of one measurement."""
    eval_samples: int = Field(default=8, ge=1)
    """Answers to each: k of pass@k goes up to this."""
    check_questions: int = Field(default=32, ge=0)
    """Questions of the check before step 0 that the model succeeds at all; 0: no check."""
    keep_rollouts: int = Field(default=200, ge=0)
    """Newest steps whose sampled answers are kept for `nanochat rl show`."""


SAMPLED = ("max_new_tokens", "answers_each", "temperature")
"""Settings of [eval] that change what a model answers; max_examples is only how often it is asked."""


class EvalSettings(Section):
    """Evaluation after training."""

    tasks: list[str] = []
    """Chat tasks to score, by name; your own as `FILE.py:Class`."""
    max_examples: int = Field(default=400, ge=1)
    """Examples of one task."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Longest answer of a generative task, in tokens."""
    batch_size: int = Field(default=32, ge=1)
    """Slots of the engine during evaluation, and at most so many rows of CORE in a pass."""
    answers_each: int = Field(default=1, ge=1)
    """Answers to each example of a generative task: more than one give pass@k and need a temperature."""
    temperature: float = Field(default=0.0, ge=0)
    """Of the answers to generative tasks; 0: the most likely one."""
    core_tasks: list[str] = []
    """Tasks of the CORE bundle to score, by name; empty: all that are there."""
    max_per_task: int | None = Field(default=None, ge=1)
    """Questions of one CORE task; unset: all."""
    allow_weak_isolation: bool = False
    """Run code that the model wrote (humaneval) even where this machine cannot close it off well."""

    @model_validator(mode="after")
    def check_sampling(self) -> "EvalSettings":
        """Several answers have to differ."""
        if self.answers_each > 1 and self.temperature == 0:
            number = self.answers_each
            raise ValueError(f"answers_each = {number} at temperature 0 are all the same; set eval.temperature to 0.8")
        return self


class CheckpointSettings(Section):
    """What survives."""

    every: Annotated[int, Field(ge=0)] | Annotated[str, Field(pattern=MINUTES)] = 250
    """Between two checkpoints: steps, or a time such as "15 min"; 0: only at the end."""
    keep: int = Field(default=2, ge=1)
    """Newest checkpoints of a stage that are kept."""
    keep_best: bool = True
    """Also keep the checkpoint with the lowest validation bits per byte, of those that were evaluated."""
    keep_every: int = Field(default=0, ge=0)
    """Also keep each checkpoint whose step is a multiple of this, for good; 0: none."""

    @property
    def every_steps(self) -> int:
        """Steps between two checkpoints; 0 where it is a time, or never."""
        return self.every if isinstance(self.every, int) else 0

    @property
    def every_seconds(self) -> float | None:
        """Seconds between two checkpoints; None where it is a number of steps."""
        return None if isinstance(self.every, int) else 60 * float(self.every.split("m")[0])


class RuntimeSettings(Section):
    """The machine."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute type: auto is bf16 where the hardware has it (the reason is printed), float32 elsewhere."""
    compile: bool = True
    """Compile the training step with torch.compile where a compiler is at hand."""
    deterministic: bool = True
    """On CUDA: kernels that give the same bits every time, for an exact resume; a tenth of the speed."""
    seed: int = Field(default=42, ge=0)
    """Seed of initialisation, data order and sampling."""
    log_every: int = Field(default=1, ge=1)
    """Steps between two log lines."""
    hang_seconds: float = Field(default=600, gt=0)
    """With several processes: seconds without progress after which those that are waited for are named and all end."""
    track: Literal["wandb", "trackio", "tensorboard"] | None = None
    """Where metrics.jsonl is copied to while it grows; a tracker that fails never stops training."""


class Settings(Section):
    """A preset, complete."""

    model: ModelSettings = ModelSettings()
    tokenizer: TokenizerSettings = TokenizerSettings()
    data: DataSettings = DataSettings()
    batch: BatchSettings = BatchSettings()
    base: BaseSettings = BaseSettings()
    mid: MidSettings = MidSettings()
    sft: SftSettings = SftSettings()
    rl: RlSettings = RlSettings()
    eval: EvalSettings = EvalSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    runtime: RuntimeSettings = RuntimeSettings()

    def learns_text(self, stage: str) -> bool:
        """Whether a stage learns from the pretraining text.

        >>> Settings.model_validate({"mid": {"replay": 0.1}}).learns_text("mid"), Settings().learns_text("mid")
        (True, False)
        """
        return stage == "base" or (stage in ("mid", "sft") and getattr(self, stage).replay > 0)
