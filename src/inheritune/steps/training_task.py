"""Bundle everything that the steps of one training share: what to train, where, and on what."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from inheritune.data.tokens import TokenDirectory, open_tokens
from inheritune.model_files.directory import ModelDirectory
from inheritune.model_files.safetensors import DTYPES
from inheritune.recipe.schema import Recipe
from inheritune.recipe.training import Train
from inheritune.steps.job import Job
from inheritune.steps.resume import decisive
from inheritune.steps.tasks import asked_at
from inheritune.steps.training_spec import TrainingSpec
from inheritune.surgery.plan import stored_dtype
from inheritune.system.strict_json import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def published_dtype(recipe: Recipe, reference: ModelDirectory) -> str:
    """Dtype of the weights of a run's published models, as in a safetensors header."""
    of_reference = stored_dtype([*reference.tensors.values()])
    dtype = DTYPES.get(recipe.target.dtype, of_reference)
    return dtype if dtype in ("BF16", "F16") else "F32"


def training_inputs(job: Job, tokens: TokenDirectory, spec: TrainingSpec) -> dict[str, Any]:
    """The inputs that every training of a run has, with the values that this one changes."""
    return {
        "train": decisive(spec.train_section(job.recipe.train)),
        "tokens": tokens.fingerprint,
        # Tasks are asked of the trained model and decide nothing about it.
        "evaluate": {"batch_size": job.recipe.evaluate.batch_size},
    }


@dataclass(frozen=True)
class TrainingTask:
    """One training of a run."""

    job: Job  # the context of the run
    spec: TrainingSpec  # what to train, and for how long
    # The training's own directory; it receives ``model/``, ``metrics.jsonl``, ``checkpoints/``
    # and ``result.json``
    directory: Path
    tokens: TokenDirectory  # training and validation tokens
    # Everything that decides the result, as JSON values. They are stored with checkpoints and
    # the result, and compared before either is reused.
    inputs: Mapping[str, Any]
    dtype: str = "F32"  # dtype of the published weights, as in a safetensors header

    @property
    def result_inputs(self) -> dict[str, Any]:
        """Everything that decides the result: the inputs, and the dtype that it is measured in.

        Results of versions that published fp32 alone state no dtype; they stay as they are.
        """
        stored = read_json(self.result_file) if self.result_file.exists() else None
        inputs = stored.get("inputs") if isinstance(stored, dict) else None
        if isinstance(inputs, dict) and "dtype" not in inputs:
            return dict(self.inputs)
        return dict(self.inputs) | {"dtype": self.dtype}

    @property
    def train(self) -> Train:
        """The recipe's section `train`, with the values that this training changes."""
        return self.spec.train_section(self.job.recipe.train)

    @property
    def title(self) -> str:
        """Name of the training in progress events and in the ledger."""
        return self.spec.title

    @property
    def start_dir(self) -> Path:
        """Model directory of the start, with weights or, of a fresh start, a config alone."""
        return self.directory / "start" if self.spec.model is None else Path(self.spec.model)

    @property
    def model_dir(self) -> Path:
        """The trained model."""
        return self.directory / "model"

    @property
    def master_dir(self) -> Path:
        """The trained model in fp32, where the published one is rounded."""
        return self.directory / "master"

    @property
    def checkpoints_dir(self) -> Path:
        """Checkpoints ``step-<number>`` and the link ``latest``."""
        return self.directory / "checkpoints"

    @property
    def snapshots_dir(self) -> Path:
        """Checkpoints in the middle of the training that are to become models; gone at its end."""
        return self.directory / "moments"

    @property
    def snapshot_models_dir(self) -> Path:
        """The models of these checkpoints, ``<tokens>-tokens``."""
        return self.directory / "at"

    @property
    def result_file(self) -> Path:
        """Written when the training is complete."""
        return self.directory / "result.json"

    def snapshot_steps(self) -> frozenset[int]:
        """Steps after which the recipe asks tasks; the end is asked anyway and not among them."""
        # Of several seeds, tasks are asked of the first one's models only.
        if self.spec.is_repeat or self.spec.variant not in self.job.recipe.variants:
            return frozenset()
        batch_tokens = self.job.recipe.train.batch_tokens
        ends = asked_at(self.job.recipe, self.spec.tokens)
        return frozenset(tokens // batch_tokens for tokens in ends)

    def start_model(self) -> "PreTrainedModel":
        """Load the start, or initialise it by the training's seed where it is fresh."""
        from inheritune.training.models import fresh_model, load_model

        if self.spec.start == "fresh":
            return fresh_model(self.start_dir, self.train.seed, self.train.dropout)
        return load_model(self.start_dir, self.train.dropout)

    def message(self) -> dict[str, Any]:
        """The task as JSON values, for the other processes of the run."""
        return {
            "spec": asdict(self.spec),
            "directory": self.directory.relative_to(self.job.run.root).as_posix(),
            "tokens": str(self.tokens.path.resolve()),
            "inputs": dict(self.inputs),
        }

    @classmethod
    def from_message(cls, job: Job, message: Mapping[str, Any]) -> Self:
        """The task that another process has sent."""
        return cls(
            job=job,
            spec=TrainingSpec(**message["spec"]),
            directory=job.run.root / message["directory"],
            tokens=open_tokens(Path(message["tokens"])),
            inputs=message["inputs"],
        )
