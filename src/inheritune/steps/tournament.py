"""Choose the target's layers by a tournament: short trainings, of which the better half goes on.

Candidates are trained and compared on training text alone, some windows of which they do not see.
"""

import copy
import math
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from typing import Any

from inheritune.data.calibration import WINDOWS
from inheritune.data.tokenizer import open_tokenizer
from inheritune.data.tokens import TokenDirectory
from inheritune.data.window_tokens import write_window_tokens
from inheritune.errors import DataError, DivergedError
from inheritune.model_files.flops import EVALUATION_SHARE
from inheritune.recipe.inherit import DEFAULT_CANDIDATES, Tournament
from inheritune.recipe.schema import Recipe
from inheritune.steps.initial_weights import write_start
from inheritune.steps.job import Job
from inheritune.steps.reference import Reference
from inheritune.steps.repaired_start import RECORD
from inheritune.steps.resume import save_result, saved_result
from inheritune.steps.training import run_training
from inheritune.steps.training_spec import TrainingSpec, first_count, specs_for, trained_parts
from inheritune.steps.training_task import TrainingTask, training_inputs
from inheritune.surgery.removal import Cut
from inheritune.surgery.selection import named_candidates
from inheritune.surgery.ways import LayerFacts, candidates
from inheritune.system.progress import Progress
from inheritune.system.strict_json import read_json_object

_WARMUP_SHARE = 20  # one token in 20, at most
_LONGEST_NAME = 200  # file systems take 255 bytes
_LEFT = ("model", "master", "checkpoints")  # of a candidate's training that has been measured


def stages_of(recipe: Recipe, number: int | None = None) -> Iterator[tuple[int, int]]:
    """Yield candidates and training tokens of each, stage by stage; nothing without a tournament.

    Args:
        number: Candidates of the first stage; None: all that the recipe names.
    """
    section = recipe.inherit.tournament
    if section is None:
        return
    left = number or len(recipe.inherit.candidates or DEFAULT_CANDIDATES)
    for before_last in reversed(range((left - 1).bit_length())):
        yield left, section.tokens >> before_last
        left = -(-left // 2)


def candidate_spec(recipe: Recipe, facts: LayerFacts, layers: int, tokens: int) -> TrainingSpec:
    """The training of a candidate: that of the target, but for tokens and warmup.

    Its own distribution is the reference's whole one: what is stored is of another text.
    """
    spec = specs_for(recipe, recipe.target_name, LayerFacts(facts.layers), layers, tokens)[0]
    warmup = recipe.train.warmup_tokens if spec.warmup_tokens is None else spec.warmup_tokens
    distill = None if spec.distill is None else spec.distill | {"top_k": None}
    warmup = min(warmup, tokens // _WARMUP_SHARE)
    return replace(spec, warmup_tokens=warmup, distill=distill, keeps_end=False, made_of="")


def folder_name(cut: Cut) -> str:
    """Name a candidate's folder by its layers; by their digest where the name would be too long."""
    name = "-".join(map(str, cut))
    return name if len(name) <= _LONGEST_NAME else sha256(name.encode()).hexdigest()[:32]


def with_winner(job: Job, reference: Reference, tokens: TokenDirectory) -> Reference:
    """Add to a reference what `auto` compares, and the tournament of it, where the recipe has one.

    Raises:
        DataError: The training text is too short for it.
        DivergedError: All candidates diverged.
        Interrupted: A signal asked to stop; finished trainings are not repeated.
    """
    recipe, count = job.recipe, first_count(job.recipe, reference.layers)
    if (named := recipe.inherit.candidates) is not None:
        reference = replace(reference, candidates=named_candidates(named, reference.layers, count))
    section = recipe.inherit.tournament
    if section is None:
        return reference
    names: dict[Cut, str] = {}  # of equal cuts, the first name
    for name, cut in candidates(reference.facts, count).items():
        names.setdefault(cut, name)
    if len(names) < 2:
        message = "no tournament: all candidates keep the same layers"
        job.on_progress(Progress("tournament", message=message))
        return reference
    return replace(reference, tournament=_Contest(job, reference, tokens, section).won_by(names))


class _Contest:
    """One tournament, under way in ``tournament/``, and kept in tournament.json."""

    def __init__(
        self, job: Job, reference: Reference, tokens: TokenDirectory, section: Tournament
    ) -> None:
        # A checkpoint that is named on the command line is one of a training that is reported.
        self._job = replace(job, checkpoint=None)
        self._reference, self._tokens, self._section = reference, tokens, section
        self._folder = job.run.root / "tournament"
        self._train = job.recipe.train

    def won_by(self, names: dict[Cut, str]) -> dict[str, Any]:
        """Hold all stages, or read the result; returns `tournament` of run.json."""
        recipe, run = self._job.recipe, self._job.run
        example = candidate_spec(recipe, self._reference.facts, len(min(names)), 0)
        inputs = training_inputs(self._job, self._tokens, example) | {
            "reference": self._reference.model.digest,
            "tournament": self._section.model_dump(mode="json"),
            "candidates": {name: list(cut) for cut, name in names.items()},
            "distill": example.distill,
            "repair": [example.repair, example.repair_tokens],
        }
        if (stored := saved_result(self._job, run.tournament, inputs)) is not None:
            return stored
        self._text = self._held_out_text()
        left, stages = list(names), list[dict[str, Any]]()
        by = self._section.by
        for _, tokens in stages_of(recipe, len(names)):
            rows = [self._measured(cut, names[cut], tokens, inputs, not stages) for cut in left]
            rows.sort(key=lambda row: math.inf if row[by] is None else row[by])
            half, best = -(-len(rows) // 2), rows[0]
            if best[by] is None:
                raise DivergedError(
                    f"all {len(rows)} candidates of the tournament diverged.",
                    "Lower train.learning_rate in a run of another name.",
                )
            rows = [
                row | {"goes_on": place < half and row[by] is not None}
                for place, row in enumerate(rows)
            ]
            left = [tuple(row["kept"]) for row in rows if row["goes_on"]]
            stages.append({"tokens": best["tokens"], "candidates": rows})
            message = f"after {best['tokens']:,} tokens the best of {len(rows)} is {best['select']}"
            message += f", {by} {best[by]:.4f}"
            self._job.on_progress(Progress("tournament", message=message))
            if len(left) == 1:
                break
        record = {
            "by": self._section.by,
            "windows": self._text.val.num_samples(self._train.seq_len),
            "stages": stages,
            "winner": names[left[0]],
            "kept": list(left[0]),
        }
        save_result(run.tournament, inputs, record)
        shutil.rmtree(self._folder, ignore_errors=True)
        return record

    def _held_out_text(self) -> TokenDirectory:
        """Windows of the training text to train on, and others to compare on."""
        needed, train = self._section.tokens, self._train
        out = self._folder / "tokens"
        tokenizer = open_tokenizer(self._reference.model.path)
        text = write_window_tokens(
            self._tokens, tokenizer, out, needed, WINDOWS, train.seq_len, train.seed
        )
        trained = text.train.num_samples(train.seq_len) * train.seq_len
        if trained + train.seq_len <= needed and not self._job.recipe.data.allow_repeat:
            raise DataError(
                f"inherit.tournament trains on {needed:,} tokens, and the training text has "
                f"{trained:,} beside those to compare on.",
                f"Set inherit.tournament.tokens to {trained}, or data.allow_repeat to true.",
            )
        return text

    def _measured(
        self, cut: Cut, name: str, tokens: int, inputs: dict[str, Any], is_first: bool
    ) -> dict[str, Any]:
        """Train a candidate and measure it, unless that is done; returns its row of a stage."""
        recipe, model = self._job.recipe, self._reference.model
        target = recipe.variants[recipe.target_name]
        spec = candidate_spec(recipe, self._reference.facts, len(cut), tokens)
        spec = replace(
            spec,
            variant=f"candidate {name}",
            inherited_layers=None if cut == tuple(range(len(cut))) else list(cut),
            only=trained_parts(target.only or recipe.train.only, cut, self._reference.layers),
            reference_dir=None if spec.distill is None else str(model.path.resolve()),
            reference_digest=None if spec.distill is None else model.digest,
        )
        home = self._folder / folder_name(cut)
        inputs = inputs | {"kept": list(cut), "variant_tokens": tokens}
        score_file = home / f"{tokens}-tokens" / "score.json"
        if (stored := saved_result(self._job, score_file, inputs)) is not None:
            return stored
        # The repair is fitted on the windows that the target's is fitted on, but for those that
        # the candidates are compared on.
        of_run = copy.copy(self._text)
        of_run.train = self._tokens.train
        train, held_out = self._train, self._text.val.num_samples(self._train.seq_len)
        most = (of_run.train.num_samples(train.seq_len) - held_out) * train.seq_len
        spec = replace(spec, repair_tokens=min(spec.repair_tokens, most))
        write_start(TrainingTask(self._job, spec, home, of_run, {}), model)
        start = str((home / "start").resolve())
        spec = replace(spec, start="trained", model=start, repair="none", repair_tokens=0)
        task = TrainingTask(self._job, spec, score_file.parent, self._text, inputs)
        row = {"select": name, "kept": list(cut), "processes": self._job.processes.size}
        row |= self._trained(task)
        if is_first and (home / RECORD).exists():
            repair = read_json_object(home / RECORD)
            row |= {key: row[key] + repair[key] for key in ("flops", "seconds")}
        save_result(score_file, inputs, row)
        for left in _LEFT:
            shutil.rmtree(task.directory / left, ignore_errors=True)
        return row

    def _trained(self, task: TrainingTask) -> dict[str, Any]:
        """Train and measure a candidate; one that diverges has no losses, and so loses."""
        began, train = time.monotonic(), self._train
        try:
            result = run_training(task, [0.0] * self._text.val.num_samples(train.seq_len))
            row = {
                "kl": None,
                "val_loss": result.val_loss,
                "tokens": result.tokens,
                "flops": result.flops,
                "seconds": result.seconds,
            }
            return self._compared(row, task) if self._section.by == "kl" else row
        except DivergedError as error:
            from inheritune.training.models import describe

            self._job.on_progress(Progress(task.title, message=f"it loses. {error.message}"))
            task.directory.mkdir(parents=True, exist_ok=True)  # for its score
            tokens = train.num_steps(task.spec.tokens) * train.batch_tokens
            flops_each = describe(task.start_dir, train.seq_len, task.train.only).flops_per_token
            if task.spec.distill is not None:
                flops_each += self._reference.flops_per_token * EVALUATION_SHARE
            # Counted as if it had come to its end: at most that was spent.
            return {
                "kl": None,
                "val_loss": None,
                "tokens": tokens,
                "flops": tokens * flops_each,
                "seconds": time.monotonic() - began,
            }

    def _compared(self, row: dict[str, Any], task: TrainingTask) -> dict[str, Any]:
        """Add the KL divergence from the reference on the held-out windows, and what that took."""
        from inheritune.evaluation.fidelity import measure_fidelity
        from inheritune.training.hardware import choose_device
        from inheritune.training.models import describe, load_model

        began, job = time.monotonic(), self._job
        models: list[Any] = [load_model(p) for p in (self._reference.model.path, task.model_dir)]
        first, second = (model.to(choose_device()) for model in models)
        seq_len, batch_size = self._train.seq_len, job.recipe.evaluate.batch_size
        fidelity = measure_fidelity(
            first, second, self._text.val, seq_len, batch_size, job.stop, job.on_progress
        )
        if not math.isfinite(fidelity.kl):
            raise DivergedError(f"{task.title}: its KL divergence is {fidelity.kl}.")
        flops_each = describe(task.model_dir, seq_len).flops_per_token
        flops_each += self._reference.flops_per_token
        return row | {
            "kl": fidelity.kl,
            "flops": row["flops"] + fidelity.tokens * flops_each * EVALUATION_SHARE,
            "seconds": row["seconds"] + time.monotonic() - began,
        }
