import json
import math
import mmap
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from small_trainings import assert_same, rows_of, start_training, values_of
from transformers import LlamaForCausalLM

from inheritune.data.tokens import TokenDirectory
from inheritune.errors import DivergedError, Interrupted, RecipeError
from inheritune.recipe.training import Train
from inheritune.system.progress import Progress
from inheritune.training import lazy_logits, training_inputs
from inheritune.training.hardware import Settings
from inheritune.training.loop_config import LoopResult
from inheritune.training.save_schedule import CheckpointSchedule
from inheritune.training.throughput import flops_per_token, peak_bytes

INPUTS = {"seed": 0}


class Trainer:
    """Trains copies of one fresh model on one corpus."""

    def __init__(self, model: LlamaForCausalLM, tokens: TokenDirectory, settings: Settings) -> None:
        self.fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        self.model = model
        self.stream = tokens.train
        self.settings = settings
        self.val_calls = 0
        self.allowed: set[str] = set()
        self.noted: dict[str, object] = {}
        self.val_losses: list[float] = []  # that are measured first, if not rising ones
        self.messages: list[str] = []
        self.peak_flops: float | None = None

    def __call__(
        self,
        recipe: Train,
        folder: Path,
        stop_after: int | None = None,
        inputs: dict | None = None,
    ) -> LoopResult:
        """Start from the fresh weights, as a new process would."""
        self.model.load_state_dict(self.fresh)
        return start_training(
            self.model,
            recipe,
            folder,
            self.stream,
            self.settings,
            stop_after,
            self.measure,
            self.hear,
            inputs=INPUTS if inputs is None else inputs,
            noted_inputs=self.noted,
            allowed_changes=self.allowed,
            peak_flops=self.peak_flops,
        )

    def hear(self, progress: Progress) -> None:
        self.messages += [progress.message] * bool(progress.message)

    def measure(self, model: torch.nn.Module) -> float:
        self.val_calls += 1
        return self.val_losses.pop(0) if self.val_losses else 1.0 + self.val_calls

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}


@pytest.fixture
def trainer(small_llama: LlamaForCausalLM, tiny_tokens: TokenDirectory, plain: Settings) -> Trainer:
    return Trainer(small_llama, tiny_tokens, plain)


def test_the_loss_falls(trainer: Trainer, train_recipe: Train, tmp_path: Path) -> None:
    trainer(train_recipe, tmp_path)
    losses = values_of(tmp_path, "loss")
    assert len(losses) == train_recipe.num_steps(train_recipe.tokens) == 20
    assert losses[0] == pytest.approx(math.log(320), abs=0.1)
    assert losses[-1] < losses[0] - 0.5


def test_two_trainings_give_the_same_weights(
    trainer: Trainer, train_recipe: Train, tmp_path: Path
) -> None:
    trainer(train_recipe, tmp_path / "one")
    one = trainer.weights()
    trainer(train_recipe, tmp_path / "two")
    assert_same(one, trainer.weights())


@pytest.mark.parametrize("stops", [[1], [7], [3, 4, 19], [5, 10, 15]])
def test_training_stopped_and_continued_ends_with_the_same_weights_and_rows(
    stops: list[int], trainer: Trainer, train_recipe: Train, tmp_path: Path
) -> None:
    trainer(train_recipe, tmp_path / "whole")
    whole = trainer.weights()
    for stop in stops:
        with pytest.raises(Interrupted, match=f"saved at step {stop} of 20 steps"):
            trainer(train_recipe, tmp_path / "pieces", stop_after=stop)
    trained = trainer(train_recipe, tmp_path / "pieces")
    assert_same(whole, trainer.weights())
    assert trained.restarts == len(stops)
    for kept in ("loss", "learning_rate", "grad_norm"):
        one, other = (
            [(row["step"], row[kept]) for row in rows_of(tmp_path / name) if kept in row]
            for name in ("whole", "pieces")
        )
        assert one == other
    evaluated = [row["step"] for row in rows_of(tmp_path / "pieces") if "val_loss" in row]
    assert evaluated == [0, 5, 10, 15]  # the end: by who publishes it


@pytest.mark.parametrize(
    ("eval_steps", "evaluated"),
    [(3, [0, 3, 6, 9, 12, 15, 18]), (6, [0, 6, 12]), (19, [0]), (20, [0]), (50, [0])],
)
def test_no_validation_comes_just_before_the_end(
    eval_steps: int,
    evaluated: list[int],
    trainer: Trainer,
    train_recipe: Train,
    tmp_path: Path,
) -> None:
    every = {"eval_every": eval_steps * train_recipe.batch_tokens}
    trainer(train_recipe.model_copy(update=every), tmp_path)
    assert [row["step"] for row in rows_of(tmp_path) if "val_loss" in row] == evaluated


def test_dropout_drops_the_same_after_a_resume(
    trainer: Trainer, train_recipe: Train, tmp_path: Path
) -> None:
    for layer in trainer.model.model.layers:
        layer.mlp.act_fn = torch.nn.Sequential(layer.mlp.act_fn, torch.nn.Dropout(0.1))
    wet = train_recipe.model_copy(update={"dropout": 0.1})
    trainer(wet, tmp_path / "whole")
    whole = trainer.weights()
    with pytest.raises(Interrupted):
        trainer(wet, tmp_path / "pieces", stop_after=9)
    torch.manual_seed(77)
    trainer(wet, tmp_path / "pieces")
    assert_same(whole, trainer.weights())


def test_order_and_resume_hold_across_an_epoch(
    trainer: Trainer, train_recipe: Train, tmp_path: Path
) -> None:
    per_epoch = trainer.stream.num_samples(16) * 16
    longer = train_recipe.model_copy(update={"tokens": per_epoch + 1280, "eval_every": 10**9})
    trainer(longer, tmp_path / "whole")
    whole = trainer.weights()
    with pytest.raises(Interrupted):
        trainer(longer, tmp_path / "pieces", stop_after=per_epoch // 128)
    trainer(longer, tmp_path / "pieces")
    assert_same(whole, trainer.weights())
    assert rows_of(tmp_path / "pieces")[-1]["epoch"] > 1


def test_a_step_does_not_depend_on_how_it_is_cut_into_micro_batches(
    trainer: Trainer, train_recipe: Train, tmp_path: Path
) -> None:
    trainer(train_recipe, tmp_path / "8")
    whole = values_of(tmp_path / "8", "loss")
    for micro_batch in (1, 4):
        folder = tmp_path / str(micro_batch)
        trainer(train_recipe.model_copy(update={"micro_batch": micro_batch}), folder)
        cut = values_of(folder, "loss")
        assert cut == pytest.approx(whole, abs=1e-5)


def test_a_finished_training_trains_no_further(
    trainer: Trainer, train_recipe: Train, tmp_path: Path
) -> None:
    trainer(train_recipe, tmp_path)
    once, calls = trainer.weights(), trainer.val_calls
    trainer(train_recipe, tmp_path)
    assert_same(once, trainer.weights())
    assert trainer.val_calls == calls


def test_resume_cuts_rows_after_the_checkpoint_and_torn_lines(
    trainer: Trainer, train_recipe: Train, tmp_path: Path
) -> None:
    with pytest.raises(Interrupted):
        trainer(train_recipe, tmp_path, stop_after=6)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "loss": 9.0}\n{"step": 8, "lo')
    trainer(train_recipe, tmp_path)
    assert [row["step"] for row in rows_of(tmp_path) if "loss" in row] == list(range(1, 21))
    assert 9.0 not in [row.get("loss") for row in rows_of(tmp_path)]


def test_checkpoint_of_other_inputs_is_refused_with_both_values(
    trainer: Trainer, train_recipe: Train, tmp_path: Path
) -> None:
    with pytest.raises(Interrupted):
        trainer(train_recipe, tmp_path, stop_after=2)
    with pytest.raises(RecipeError, match="seed = 0; now it is 1") as error:
        trainer(train_recipe, tmp_path, inputs={"seed": 1})
    assert error.value.exit_code == 2


def test_nonfinite_value_stops_the_training(
    trainer: Trainer, train_recipe: Train, tmp_path: Path
) -> None:
    trainer.fresh["model.norm.weight"][0] = math.nan
    with pytest.raises(DivergedError, match="step 1") as error:
        trainer(train_recipe, tmp_path)
    assert error.value.exit_code == 5
    last = rows_of(tmp_path)[-1]
    assert last["loss"] is None
    assert last["nonfinite"] == "nan"


def test_nonfinite_skip_never_steps_the_weights(
    trainer: Trainer, train_recipe: Train, tmp_path: Path
) -> None:
    trainer.fresh["model.norm.weight"][0] = math.nan
    patient = train_recipe.model_copy(update={"nonfinite": "skip", "max_skips": 4})
    with pytest.raises(DivergedError, match="step 5"):
        trainer(patient, tmp_path)
    for name, tensor in trainer.weights().items():
        torch.testing.assert_close(tensor, trainer.fresh[name], rtol=0, atol=0, equal_nan=True)


@pytest.mark.slow
def test_compiled_and_eager_steps_agree(
    trainer: Trainer, train_recipe: Train, tmp_path: Path
) -> None:
    short = train_recipe.model_copy(update={"tokens": 640})
    trainer(short, tmp_path / "eager")
    trainer.settings = Settings(**(trainer.settings.record() | {"compile": True}))
    trained = trainer(short, tmp_path / "compiled")
    eager, compiled = (values_of(tmp_path / name, "loss") for name in ("eager", "compiled"))
    if not trained.settings.compile:
        pytest.skip(f"not compiled: {trained.notes}")
    assert compiled == pytest.approx(eager, abs=1e-4)


def test_broken_compiler_falls_back_with_one_note(
    trainer: Trainer, train_recipe: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **kwargs: object) -> object:
        raise RuntimeError("no compiler")

    trainer(train_recipe, tmp_path / "eager")
    eager = trainer.weights()
    monkeypatch.setattr(torch, "compile", lambda function, **kwargs: broken)
    trainer.settings = Settings(**(trainer.settings.record() | {"compile": True}))
    trained = trainer(train_recipe, tmp_path / "fallback")
    assert not trained.settings.compile
    assert trained.notes == ("torch.compile failed (RuntimeError), going on without it",)
    assert_same(eager, trainer.weights())


def test_first_50_losses_are_the_golden_ones(
    trainer: Trainer, train_recipe: Train, tmp_path: Path
) -> None:
    # Other processors round differently: hence not the last bit. A change here is a change of the
    # method's arithmetic or order and needs a line in docs/log.md.
    golden = json.loads((Path(__file__).parents[1] / "golden" / "losses.json").read_text())
    longer = train_recipe.model_copy(update={"tokens": 50 * 128})
    trainer(longer, tmp_path)
    losses = values_of(tmp_path, "loss")
    assert losses == pytest.approx(golden, abs=2e-4)


def test_recomputed_layers_give_the_same_weights(
    trainer: Trainer, train_recipe: Train, tmp_path: Path
) -> None:
    trainer(train_recipe, tmp_path / "kept")
    kept = trainer.weights()
    trainer.settings = replace(trainer.settings, activation_checkpointing=True)
    trainer(train_recipe, tmp_path / "recomputed")
    assert trainer.model.model.layers[0].gradient_checkpointing
    assert_same(kept, trainer.weights())


@pytest.mark.parametrize("loss", ["op", "chunks"])
def test_a_loss_that_never_holds_the_logits_trains_the_same(
    loss: str,
    trainer: Trainer,
    train_recipe: Train,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer(train_recipe, tmp_path / "logits")
    trainer.settings = replace(trainer.settings, loss=loss)
    monkeypatch.setattr(lazy_logits, "_CHUNK_LOGITS", 1000)
    calls, own = [], torch.nn.functional.linear_cross_entropy
    monkeypatch.setattr(
        torch.nn.functional,
        "linear_cross_entropy",
        lambda *of, **how: calls.append(of) or own(*of, **how),
    )
    trained = trainer(train_recipe, tmp_path / loss)
    assert trained.settings.loss == loss and bool(calls) == (loss == "op")
    assert values_of(tmp_path / loss, "loss") == pytest.approx(
        values_of(tmp_path / "logits", "loss"), abs=1e-4
    )


def test_logits_that_are_no_larger_than_a_chunk_are_made_whole(
    trainer: Trainer, train_recipe: Train, tmp_path: Path
) -> None:
    trainer(train_recipe, tmp_path / "logits")
    whole = trainer.weights()
    trainer.settings = replace(trainer.settings, loss="chunks")
    trained = trainer(train_recipe, tmp_path / "chunks")
    assert trained.settings.loss == "logits"
    assert_same(whole, trainer.weights())


def test_model_whose_loss_cannot_be_fused_falls_back_with_one_note(
    trainer: Trainer, train_recipe: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer(train_recipe, tmp_path / "logits")
    whole = trainer.weights()
    trainer.settings = replace(trainer.settings, loss="op")
    monkeypatch.setattr(
        "inheritune.training.setup.logits_are_plain_head_output", lambda model: False
    )
    trained = trainer(train_recipe, tmp_path / "op")
    assert trained.settings.loss == "logits"
    assert [note for note in trained.notes if "logits" in note] == list(trained.notes)
    assert_same(whole, trainer.weights())


def test_changed_inputs_are_all_named_and_each_can_be_allowed(
    trainer: Trainer, train_recipe: Train, tmp_path: Path
) -> None:
    begun = {"train": {"learning_rate": 1e-2, "seed": 0}, "tokens": "abc"}
    with pytest.raises(Interrupted):
        trainer(train_recipe, tmp_path, stop_after=2, inputs=begun)
    now = {"train": {"learning_rate": 1e-3, "seed": 1}, "tokens": "abc"}
    with pytest.raises(RecipeError) as error:
        trainer(train_recipe, tmp_path, inputs=now)
    assert "train.learning_rate = 0.01; now it is 0.001" in error.value.message
    assert "train.seed = 0; now it is 1" in error.value.message
    trainer.allowed = {"train.learning_rate", "train.seed"}
    trained = trainer(train_recipe, tmp_path, inputs=now)
    assert trained.notes == (
        "allowed: train.learning_rate was 0.01, now it is 0.001",
        "allowed: train.seed was 0, now it is 1",
    )


def test_change_of_noted_inputs_is_named(
    trainer: Trainer, train_recipe: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer.noted = {"train.eval_every": 640}
    with pytest.raises(Interrupted):
        trainer(train_recipe, tmp_path, stop_after=2)
    trainer.noted = {"train.eval_every": 1280}
    newer = {"torch": "9.9"}
    monkeypatch.setattr(training_inputs, "version", lambda name: newer.get(name) or version(name))
    trained = trainer(train_recipe, tmp_path)
    assert trained.notes == (
        f"torch was {version('torch')}, now it is 9.9",
        "train.eval_every was 640, now it is 1280",
    )


def test_nonfinite_row_names_samples_and_process(
    trainer: Trainer, train_recipe: Train, tmp_path: Path
) -> None:
    trainer.fresh["model.norm.weight"][0] = math.nan
    with pytest.raises(DivergedError):
        trainer(train_recipe, tmp_path)
    last = rows_of(tmp_path)[-1]
    assert (last["samples"], last["ranks"]) == ([0, 8], [0])


def test_new_best_val_loss_is_saved_and_kept(
    trainer: Trainer, train_recipe: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = train_recipe.model_copy(update={"eval_every": 384, "keep": 1, "save_minutes": 1e-9})
    monkeypatch.setattr(
        CheckpointSchedule, "due", lambda self: False
    )  # no save falls on a validation
    trainer.val_losses = [9.0, 5.0, 4.0, 6.0, 7.0, 4.5, 8.0]  # after 0, 3, 6, ... steps
    trainer(recipe, tmp_path)
    saved = sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*"))
    assert saved == ["step-00000006", "step-00000020"]


def test_a_loss_that_keeps_falling_is_not_saved_at_every_validation(
    trainer: Trainer, train_recipe: Train, tmp_path: Path
) -> None:
    trainer.val_losses = [9.0, 5.0, 4.0, 3.0, 2.0]
    recipe = train_recipe.model_copy(update={"keep": 9, "save_minutes": 60.0})
    trainer(recipe, tmp_path)
    saved = [path.name for path in (tmp_path / "checkpoints").glob("step-*")]
    assert saved == ["step-00000020"]


def test_skipped_steps_in_a_row_are_counted_across_a_stop(
    trainer: Trainer, train_recipe: Train, tmp_path: Path
) -> None:
    with torch.no_grad():
        trainer.fresh["model.norm.weight"] = torch.full((32,), math.nan)
    patient = train_recipe.model_copy(update={"nonfinite": "skip", "max_skips": 4})
    with pytest.raises(Interrupted, match="saved at step 3"):
        trainer(patient, tmp_path, stop_after=3)
    with pytest.raises(DivergedError, match="at step 5"):
        trainer(patient, tmp_path)


def test_resume_notes_another_choice_of_the_machine(
    trainer: Trainer, train_recipe: Train, tmp_path: Path
) -> None:
    with pytest.raises(Interrupted):
        trainer(train_recipe, tmp_path, stop_after=3)
    begun = trainer.settings
    trainer.settings = replace(begun, precision="bf16")
    with pytest.raises(
        RecipeError, match=r"trained in fp32; train\.precision comes to bf16"
    ) as error:
        trainer(train_recipe, tmp_path)
    assert "--allow-change train.precision" in error.value.hint
    trainer.settings = replace(begun, fused_optimizer=False)
    trainer.messages.clear()
    trained = trainer(train_recipe, tmp_path)
    note = "settings.fused_optimizer was True, now it is False"
    assert trained.notes == (note,)
    assert trainer.messages[0] == note  # before the first step


def test_mfu_is_the_share_of_the_peak_and_null_where_that_is_unknown(
    trainer: Trainer, train_recipe: Train, tmp_path: Path
) -> None:
    trainer(train_recipe, tmp_path / "unknown")
    assert {row["mfu"] for row in rows_of(tmp_path / "unknown") if "loss" in row} == {None}
    trainer.peak_flops = 1e9
    trainer(train_recipe, tmp_path / "known")
    flops = flops_per_token(trainer.model, train_recipe.seq_len)
    for row in rows_of(tmp_path / "known"):
        if "loss" in row:
            assert row["mfu"] == pytest.approx(row["tokens_per_s"] * flops / 1e9, abs=1e-4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="counted on the GPU")
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no /proc")
def test_memory_peak_is_of_this_training_only(
    trainer: Trainer, train_recipe: Train, tmp_path: Path
) -> None:
    with mmap.mmap(-1, 2**28) as before:  # as of a larger model; given back whatever malloc keeps
        before.write(b"1" * 2**28)
        peak = peak_bytes()
    trainer(train_recipe, tmp_path)
    assert max(row["memory_bytes"] for row in rows_of(tmp_path) if "loss" in row) < peak - 2**27
