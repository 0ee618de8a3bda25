"""The loss against the frozen reference, and trainings with it."""

import copy
import json
import math
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from distilled_models import (
    LONG,
    SAMPLES,
    SMALL,
    X,
    Y,
    llama,
    recipe_of,
)
from pydantic import ValidationError
from small_trainings import assert_same, start_training, values_of
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, Gemma2Config
from transformers.modeling_outputs import CausalLMOutput

from inheritune.data.tokens import TokenDirectory
from inheritune.errors import DataError, Interrupted, RecipeError, SourceError
from inheritune.planning.recipe_plan import plan_recipe
from inheritune.recipe.load import RecipeFile, made_recipe
from inheritune.recipe.training import Train
from inheritune.recipe.variants import AlphaSchedule
from inheritune.recipe.yaml_tree import Tree
from inheritune.reporting.run_tables import variants_table
from inheritune.run.execute import execute
from inheritune.run_directory import Run
from inheritune.run_record.record import RunRecord
from inheritune.system.processes import ALONE
from inheritune.system.progress import Progress
from inheritune.training import chunked_loss, lazy_logits, logit_cache
from inheritune.training.batches import sample_numbers
from inheritune.training.distillation import (
    Distillation,
    FrozenReference,
    StoredDistribution,
    make_objective,
)
from inheritune.training.hardware import Settings
from inheritune.training.kernels import MATMUL_ATTENTION
from inheritune.training.kl_divergence import DistillationObjective, Divergence, Full, TopK
from inheritune.training.logit_cache import LogitCache
from inheritune.training.loop_config import LoopResult
from inheritune.training.models import load_model
from inheritune.training.setup import make_setup

typed = RunRecord.model_validate


def gemma2(seed: int, layers: int, **changes: object) -> torch.nn.Module:
    """Its logits are more than the head's product: a soft-cap follows."""
    torch.manual_seed(seed)
    config = Gemma2Config(**SMALL, **LONG, head_dim=8, num_hidden_layers=layers)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


MODELS = {
    "llama": llama,
    "llama, tied": lambda seed, layers: llama(seed, layers, tie_word_embeddings=True),
    "gemma2": gemma2,
}


def by_formula(
    model: torch.nn.Module, reference: torch.nn.Module, alpha: float, tau: float
) -> tuple[torch.Tensor, ...]:
    """The definition, in fp64, of sums over the tokens that have a label."""
    valid = Y != -100
    z = copy.deepcopy(model).double()
    ours = z(input_ids=X).logits[valid]
    theirs = copy.deepcopy(reference).double()(input_ids=X).logits[valid].detach()
    ce = F.cross_entropy(ours, Y[valid], reduction="sum")
    p, q = (theirs / tau).softmax(-1), (ours / tau).softmax(-1)
    kl = (p * (p.log() - q.log())).sum()
    loss = alpha * ce + (1 - alpha) * tau**2 * kl
    loss.backward()
    return loss, ce, kl, {name: param.grad for name, param in z.named_parameters()}


def against(
    reference: torch.nn.Module,
    model: torch.nn.Module,
    settings: Settings,
    alpha: float = 0.6,
    temperature: float = 1.0,
) -> DistillationObjective:
    source = FrozenReference(reference, settings, temperature)
    return make_objective(model, Distillation(source, alpha), SAMPLES)


@pytest.mark.parametrize(("chunk", "block"), [(2**24, 2**24), (7 * 320, 2 * 320)])
@pytest.mark.parametrize(("alpha", "tau"), [(0.6, 1.0), (0.3, 2.5), (0.0, 1.0)])
@pytest.mark.parametrize("name", MODELS)
def test_distillation_loss_and_gradients_match_the_fp64_formula(
    name: str,
    alpha: float,
    tau: float,
    chunk: int,
    block: int,
    plain: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lazy_logits, "_CHUNK_LOGITS", chunk)
    monkeypatch.setattr(chunked_loss, "_BLOCK_LOGITS", block)
    model, reference = MODELS[name](0, 2), MODELS[name](1, 3)
    objective = against(reference, model, plain, alpha, tau)
    assert objective.avoids_logits == (name != "gemma2")
    sums = objective(X, Y)
    sums[0].backward()
    loss, ce, kl, gradients = by_formula(model, reference, alpha, tau)
    expected = torch.stack((loss, ce, kl)).detach()
    torch.testing.assert_close(sums.detach().double(), expected, rtol=1e-5, atol=1e-5)
    for key, parameter in model.named_parameters():
        gap = (parameter.grad.double() - gradients[key]).norm()
        assert gap <= 1e-5 * gradients[key].norm() + 1e-7, key


def test_a_head_with_a_bias_has_its_gradient_too(plain: Settings) -> None:
    model, reference = llama(0, 2), llama(1, 2)
    for each in (model, reference):
        each.lm_head = torch.nn.Linear(32, 320)
    against(reference, model, plain, 0.6, 2.0)(X, Y)[0].backward()
    gradients = by_formula(model, reference, 0.6, 2.0)[3]
    for key in ("lm_head.weight", "lm_head.bias"):
        ours = model.get_parameter(key).grad.double()
        torch.testing.assert_close(ours, gradients[key], rtol=1e-4, atol=1e-5)


def test_kl_divergence_is_zero_for_a_copy_of_the_reference_and_large_for_a_fresh_model(
    plain: Settings,
) -> None:
    reference = llama(1, 3)
    for model, least, most in ((copy.deepcopy(reference), 0.0, 1e-6), (llama(2, 3), 1.0, 100.0)):
        kl = against(reference, model, plain)(X, Y).detach()[2]
        assert least - 1e-6 <= float(kl) / int((Y != -100).sum()) <= most


def test_distillation_loss_under_bf16_is_summed_in_fp32(plain: Settings) -> None:
    model, reference = llama(0, 2), llama(1, 3)
    bf16 = replace(plain, precision="bf16")
    objective = against(reference, model, bf16)
    with bf16.autocast():
        sums = objective(X, Y)
    sums[0].backward()
    expected = torch.stack(by_formula(model, reference, 0.6, 1.0)[:3]).detach()
    assert sums.dtype == torch.float32
    torch.testing.assert_close(sums.detach().double(), expected, rtol=2e-2, atol=0)
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_a_bf16_reference_stays_bf16_and_predicts_nearly_the_same(
    name: str, plain: Settings, tmp_path: Path
) -> None:
    MODELS[name](1, 3).save_pretrained(tmp_path)
    exact = FrozenReference(load_model(tmp_path), plain, 1.0)
    rounded = load_model(tmp_path, dtype=torch.bfloat16)
    before = {key: tensor.clone() for key, tensor in rounded.state_dict().items()}
    source = FrozenReference(rounded, replace(plain, precision="bf16"), 1.0)
    assert_same(before, rounded.state_dict())
    assert {weight.dtype for weight in rounded.parameters()} == {torch.bfloat16}
    one, other = (s.distribution(X).logits for s in (exact, source))
    assert (other.weight is None) == (one.weight is None) == (name == "gemma2")
    p, q = (logits.rows(slice(None)).float().log_softmax(-1) for logits in (one, other))
    assert float((p.exp() * (p - q)).sum(-1).mean()) < 1e-2
    target = MODELS[name](1, 3)
    bf16 = replace(plain, precision="bf16")
    objective = make_objective(target, Distillation(source, 0.0), SAMPLES)
    with bf16.autocast():
        sums = objective(X, Y)
    sums[0].backward()
    assert float(sums[2].detach()) / int((Y != -100).sum()) < 1e-2  # a copy, but for rounding


def test_distillation_gives_gradients_to_the_target_only(
    plain: Settings,
) -> None:
    model, reference = llama(0, 2), llama(1, 3).train()
    before = {name: tensor.clone() for name, tensor in reference.state_dict().items()}
    against(reference, model, plain, 0.0)(X, Y)[0].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in reference.parameters())
    assert not any(module.training for module in reference.modules())
    assert_same(before, reference.state_dict())


def test_reference_of_another_vocabulary_is_refused_with_both_sizes(plain: Settings) -> None:
    model, padded = llama(0, 1), llama(1, 1, vocab_size=384)
    with pytest.raises(SourceError, match="target predicts 320 ids and its reference 384"):
        against(padded, model, plain)


def test_wrong_kl_formula_is_caught_by_the_check_on_the_reference_itself(
    plain: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, reference = llama(0, 1), llama(1, 1)
    against(reference, model, plain)
    right = Full.divergence

    def entropy_left_out(full: Full, *of: object) -> Divergence:
        p = full.logits.rows(of[2]).softmax(-1)
        return replace(right(full, *of), kl=-(p * of[1]).sum(-1))

    monkeypatch.setattr(Full, "divergence", entropy_left_out)
    with pytest.raises(AssertionError, match=r"from itself is .* nats per token, not 0"):
        against(reference, model, plain)


@pytest.mark.parametrize("alpha", [0.0, 0.6])
@pytest.mark.parametrize("factor", [0.0, 0.99, math.nan])
def test_a_loss_whose_gradient_is_not_its_formulas_is_caught_before_the_training(
    factor: float, alpha: float, plain: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, reference = llama(0, 1), llama(1, 1)
    right = Full.divergence

    def wrong_slope(full: Full, *of: object) -> Divergence:
        divergence = right(full, *of)
        return replace(divergence, slope=divergence.slope * factor)

    monkeypatch.setattr(Full, "divergence", wrong_slope)
    with pytest.raises(AssertionError, match="gradient of the loss at the target's logits is off"):
        against(reference, model, plain, alpha)


def test_stored_predictions_whose_gradient_is_wrong_are_caught_before_the_training(
    plain: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, theirs = llama(0, 1), llama(1, 1)(X[:1]).logits[0].detach()
    right = TopK.divergence
    for t in (1.0, 2.0):
        stored = StoredDistribution(TopK.of(theirs, 5, t), 320)
        with monkeypatch.context() as patch:
            make_objective(model, Distillation(stored, 0.6), SAMPLES)
            patch.setattr(TopK, "divergence", lambda *of: replace(d := right(*of), slope=-d.slope))
            with pytest.raises(AssertionError, match="gradient of the loss at the target's logits"):
                make_objective(model, Distillation(stored, 0.6), SAMPLES)


def test_what_a_process_proves_in_its_turn_runs_the_target_on_few_tokens(plain: Settings) -> None:
    """On one CPU thread a whole long sample takes minutes, and the others wait for the turn."""
    model, lengths = llama(0, 1, max_position_embeddings=512), []
    samples = torch.arange(2 * 301).remainder(320).view(2, 301)
    source = FrozenReference(llama(1, 1, max_position_embeddings=512), plain, 1.0)
    hook = model.get_input_embeddings().register_forward_pre_hook(
        lambda module, args: lengths.append(args[0].numel())
    )
    objective = make_objective(model, Distillation(source, 0.6), samples, later=True)
    hook.remove()
    assert lengths and max(lengths) <= 64
    assert objective.proof is not None
    objective.proof()


def test_a_target_in_training_mode_is_left_in_it_by_the_proofs(plain: Settings) -> None:
    model = llama(0, 1).train()
    against(llama(1, 1), model, plain)
    assert all(module.training for module in model.modules())


def test_the_reference_takes_the_attention_of_the_training(
    plain: Settings, tiny_tokens: TokenDirectory, train_recipe: Train
) -> None:
    for attention, name in (("matmul", MATMUL_ATTENTION), ("model", "sdpa")):
        settings = replace(plain, attention=attention)
        source = FrozenReference(llama(1, 2).bfloat16(), settings, 1.0)
        distillation = Distillation(source, 0.0)
        given = train_recipe, settings, tiny_tokens.train, ALONE, distillation
        setup = make_setup(llama(0, 1), *given)
        assert source.model.config._attn_implementation == name
        assert setup.settings.attention == attention


# -- trainings


class Trainer:
    """Trains copies of one model against one reference."""

    def __init__(self, tokens: TokenDirectory, settings: Settings) -> None:
        self.stream, self.settings = tokens.train, settings
        self.alpha: float | AlphaSchedule | None = 0.6
        self.reference = llama(1, 3)
        self.cache: LogitCache | None = None

    def __call__(
        self, recipe: Train, folder: Path, stop_after: int | None = None
    ) -> tuple[dict[str, torch.Tensor], LoopResult]:
        """Start from the same weights, as a new process would."""
        model, distillation = llama(0, 2), None
        if self.alpha is not None:
            beside = copy.deepcopy(self.reference)
            source = self.cache or FrozenReference(beside, self.settings, 1.0)
            distillation = Distillation(source, self.alpha)
        where = folder, self.stream, self.settings
        trained = start_training(model, recipe, *where, stop_after, distillation=distillation)
        if distillation is not None:
            assert_same(self.reference.state_dict(), beside.state_dict())
        return model.state_dict(), trained


@pytest.fixture
def trainer(tiny_tokens: TokenDirectory, plain: Settings) -> Trainer:
    return Trainer(tiny_tokens, plain)


def test_kl_divergence_falls_and_rows_hold_both_parts_of_the_loss(
    trainer: Trainer, train_recipe: Train, tmp_path: Path
) -> None:
    trainer.alpha = 0.1  # what this reference says is not what the text says
    trainer(train_recipe, tmp_path)
    loss, ce, kl = (values_of(tmp_path, key) for key in ("loss", "ce", "kl"))
    assert len(loss) == len(ce) == len(kl) == 20
    assert loss == pytest.approx([0.1 * c + 0.9 * k for c, k in zip(ce, kl, strict=True)])
    assert sum(kl[-5:]) < sum(kl[:5])


def test_distillation_with_alpha_1_trains_as_without_a_reference(
    trainer: Trainer, train_recipe: Train, tmp_path: Path
) -> None:
    trainer.alpha = 1.0
    trainer(train_recipe, tmp_path / "alpha 1")
    trainer.alpha = None
    trainer(train_recipe, tmp_path / "plain")
    ours, plain = (values_of(tmp_path / name, "loss") for name in ("alpha 1", "plain"))
    assert ours[0] == pytest.approx(plain[0], abs=1e-6)
    assert ours == pytest.approx(plain, abs=1e-3)  # 20 steps at a high rate: rounding grows
    assert values_of(tmp_path / "plain", "ce") == values_of(tmp_path / "plain", "kl") == []


def test_distillation_step_does_not_depend_on_micro_batches(
    trainer: Trainer, train_recipe: Train, tmp_path: Path
) -> None:
    short = train_recipe.model_copy(update={"tokens": 640})
    trainer(short, tmp_path / "8")
    for micro_batch in (1, 4):
        folder = tmp_path / str(micro_batch)
        trainer(short.model_copy(update={"micro_batch": micro_batch}), folder)
        for key in ("loss", "ce", "kl"):
            whole = values_of(tmp_path / "8", key)
            assert values_of(folder, key) == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_alpha_goes_from_its_peak_to_its_end_in_step_with_the_learning_rate(
    schedule: str, trainer: Trainer, train_recipe: Train, tmp_path: Path
) -> None:
    trainer.alpha = AlphaSchedule(peak=0.1, end=1.0)
    recipe = train_recipe.model_copy(update={"schedule": schedule, "warmup_tokens": 256})
    trainer(recipe, tmp_path)
    rows = {key: values_of(tmp_path, key) for key in ("alpha", "learning_rate", "loss", "ce", "kl")}
    low, high = recipe.min_learning_rate, recipe.learning_rate
    assert rows["alpha"][:2] == [0.1, 0.1]  # the rate is still rising
    assert rows["learning_rate"][0] == high / 2
    for alpha, rate in list(zip(rows["alpha"], rows["learning_rate"], strict=True))[2:]:
        assert alpha == pytest.approx(1.0 + (0.1 - 1.0) * (rate - low) / (high - low), abs=1e-12)
    assert rows["alpha"][-1] == 1.0
    for alpha, loss, ce, kl in zip(*(rows[k] for k in ("alpha", "loss", "ce", "kl")), strict=True):
        assert loss == pytest.approx(alpha * ce + (1 - alpha) * kl)
    if schedule == "cosine":
        middle = 0.5 * (1 + math.cos(math.pi * 9 / 18))  # after 11 of 20 steps, 2 of them warm-up
        assert rows["alpha"][10] == 0.1 * middle + (1 - middle) * 1.0


def test_alpha_schedule_is_the_same_after_a_stop_and_with_other_micro_batches(
    trainer: Trainer, train_recipe: Train, tmp_path: Path
) -> None:
    trainer.alpha = AlphaSchedule(peak=0.0, end=0.8)
    whole, _ = trainer(train_recipe, tmp_path / "whole")
    with pytest.raises(Interrupted):
        trainer(train_recipe, tmp_path / "pieces", stop_after=9)
    pieces, _ = trainer(train_recipe, tmp_path / "pieces")
    assert_same(whole, pieces)
    trainer(train_recipe.model_copy(update={"micro_batch": 2}), tmp_path / "small")
    for folder in ("pieces", "small"):
        assert values_of(tmp_path / folder, "alpha") == values_of(tmp_path / "whole", "alpha")
    losses = [values_of(tmp_path / folder, "loss")[:5] for folder in ("whole", "small")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_alpha_of_a_number_is_in_no_row(
    trainer: Trainer, train_recipe: Train, tmp_path: Path
) -> None:
    trainer(train_recipe.model_copy(update={"tokens": 256}), tmp_path)
    assert values_of(tmp_path, "alpha") == []


def test_kl_alone_never_makes_a_one_hot_slope_and_reports_the_cross_entropy_all_the_same(
    plain: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, reference = llama(0, 2), llama(1, 3)
    objective = against(reference, model, plain, 0.0)
    monkeypatch.setattr(torch.Tensor, "scatter_add_", None)  # only the cross-entropy's slope has it
    sums = objective(X, Y)
    sums[0].backward()
    monkeypatch.undo()
    loss, ce, kl, gradients = by_formula(model, reference, 0.0, 1.0)
    expected = torch.stack((loss, ce, kl)).detach()
    torch.testing.assert_close(sums.detach().double(), expected, rtol=1e-5, atol=1e-5)
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.grad.double(), gradients[key], rtol=1e-4, atol=1e-4, msg=key
        )


@pytest.mark.parametrize("stops", [[7], [3, 4, 19]])
def test_distillation_stopped_and_continued_ends_with_the_same_weights_and_rows(
    stops: list[int], trainer: Trainer, train_recipe: Train, tmp_path: Path
) -> None:
    whole, _ = trainer(train_recipe, tmp_path / "whole")
    for stop in stops:
        with pytest.raises(Interrupted, match=f"saved at step {stop} of 20"):
            trainer(train_recipe, tmp_path / "pieces", stop_after=stop)
    pieces, trained = trainer(train_recipe, tmp_path / "pieces")
    assert_same(whole, pieces)
    assert trained.restarts == len(stops)
    for key in ("loss", "ce", "kl", "grad_norm"):
        assert values_of(tmp_path / "whole", key) == values_of(tmp_path / "pieces", key)


def test_compile_is_left_out_of_a_distillation_on_a_cpu_with_a_note(
    trainer: Trainer, train_recipe: Train, tmp_path: Path
) -> None:
    short = train_recipe.model_copy(update={"tokens": 256})
    eager, _ = trainer(short, tmp_path / "eager")
    trainer.settings = replace(trainer.settings, compile=True)
    weights, trained = trainer(short, tmp_path / "asked")
    assert not trained.settings.compile
    assert trained.notes == ("on a CPU a step with a reference is not compiled",)
    assert_same(eager, weights)


# -- what the reference predicts, kept on disk


def cache_of(
    trainer: Trainer, recipe: Train, folder: Path, k: int, steps: int, paid_by: str = "kd"
) -> LogitCache:
    """All that some steps need, in shards of at most 40 samples."""
    made_from = {"reference": "abc"}
    cache = LogitCache(folder, made_from, trainer.stream, recipe, k, 1.0, 320)
    reference = FrozenReference(copy.deepcopy(trainer.reference), trainer.settings, 1.0)
    for place in cache.missing(steps * 8):
        cache.write(place, reference, paid_by, lambda done: None)
    return cache


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logit_cache, "_SHARD_BYTES", 40 * 16 * 8 * 4)


def test_copy_of_a_shard_that_somebody_made_is_left_alone(
    trainer: Trainer, train_recipe: Train, tmp_path: Path, small_shards: None
) -> None:
    cache = cache_of(trainer, train_recipe, tmp_path, 8, steps=10)
    shard = min(cache.path.glob("shard-*"))
    shutil.copytree(shard, shard.with_name(f"{shard.name}-old"))
    again = cache_of(trainer, train_recipe, tmp_path, 8, steps=10)
    assert again.cost("kd") == cache.cost("kd")
    assert again.missing(80) == []


class PretendModel(torch.nn.Module):
    """Its logits are the given ones, (N, V), whatever is asked."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.given = logits

    def forward(self, **_: object) -> CausalLMOutput:
        return CausalLMOutput(logits=self.given[None])


@pytest.mark.parametrize("tau", [1.0, 2.0])
@pytest.mark.parametrize("k", [5, 49])
def test_top_k_divergence_matches_the_fp64_formula_tempered_within_the_k_ids(
    k: int, tau: float
) -> None:
    torch.manual_seed(0)
    z = torch.randn(6, 50, dtype=torch.float32).mul(2).requires_grad_()
    theirs, labels = torch.randn(6, 50) * 2, torch.randint(0, 50, (6,))
    source = StoredDistribution(TopK.of(theirs, k, tau), 50)
    model = PretendModel(z)
    sums = DistillationObjective(model, source, 0.3, avoids_logits=False)(z[None], labels[None])
    sums[0].backward()
    y = z.detach().double().requires_grad_()
    ids = theirs.topk(k).indices
    p, q = (logits.softmax(-1).gather(1, ids).sum(1) for logits in (theirs.double(), y))
    of_the_mass = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    p_in, q_in = ((logits.gather(1, ids) / tau).softmax(-1) for logits in (theirs.double(), y))
    within = p * (p_in * (p_in / q_in).log()).sum(1)
    kl, weighted = (of_the_mass + within).sum(), (of_the_mass + tau**2 * within).sum()
    if tau == 1 and k == 49:  # no outcome is lumped with another: the whole distribution
        whole = F.kl_div(y.log_softmax(-1), theirs.double().softmax(-1), reduction="sum")
        assert float(kl.detach()) == pytest.approx(float(whole.detach()), rel=1e-12)
    loss = 0.3 * F.cross_entropy(y, labels, reduction="sum") + 0.7 * weighted
    loss.backward()
    assert float(sums[2].detach()) == pytest.approx(float(kl.detach()), rel=1e-5)
    assert float(sums[0].detach()) == pytest.approx(float(loss.detach()), rel=1e-5)
    torch.testing.assert_close(z.grad.double(), y.grad, rtol=1e-4, atol=1e-6)


def test_top_k_of_all_but_one_id_trains_as_with_the_reference_beside(
    trainer: Trainer, train_recipe: Train, tmp_path: Path
) -> None:
    short = train_recipe.model_copy(update={"tokens": 640})
    trainer(short, tmp_path / "beside")
    trainer.cache = cache_of(trainer, short, tmp_path, k=319, steps=5)
    trainer(short, tmp_path / "kept")
    for key in ("ce", "kl"):
        beside = values_of(tmp_path / "beside", key)
        assert values_of(tmp_path / "kept", key) == pytest.approx(beside, abs=2e-3)


@pytest.mark.usefixtures("small_shards")
def test_training_from_shards_over_epochs_resumes_bit_for_bit(
    trainer: Trainer, train_recipe: Train, tmp_path: Path
) -> None:
    per_epoch = trainer.stream.num_samples(16) * 16
    longer = train_recipe.model_copy(update={"tokens": per_epoch + 1280, "eval_every": 10**9})
    steps = longer.tokens // 128
    trainer.cache = cache_of(trainer, longer, tmp_path, 8, steps)
    assert len(list(trainer.cache.path.glob("shard-*"))) == -(-per_epoch // (16 * 40))
    whole, _ = trainer(longer, tmp_path / "whole")
    with pytest.raises(Interrupted):
        trainer(longer, tmp_path / "pieces", stop_after=per_epoch // 128)
    trainer.cache = cache_of(trainer, longer, tmp_path, 8, steps)  # as a new process opens it
    pieces, _ = trainer(longer, tmp_path / "pieces")
    assert_same(whole, pieces)


@pytest.mark.usefixtures("small_shards")
def test_stored_predictions_are_found_in_every_epoch(
    trainer: Trainer, train_recipe: Train, tmp_path: Path
) -> None:
    samples = trainer.stream.num_samples(16)
    cache = cache_of(trainer, train_recipe, tmp_path, 8, samples // 8 + 1)
    reference = FrozenReference(trainer.reference, trainer.settings, 1.0)
    for position in (0, 36, samples - 3, 2 * samples + 5):
        numbers = sample_numbers(samples, train_recipe, position, position + 8)
        ids = torch.from_numpy(trainer.stream.samples(numbers, 16))[:, :-1]
        top = TopK.of(reference.distribution(ids).logits.rows(slice(None)), 8)
        stored = cache.distribution(ids, position)
        torch.testing.assert_close(stored.log_p, top.log_p, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(stored.log_rest, top.log_rest, rtol=1e-3, atol=1e-3)
        assert torch.equal(stored.ids[:, 0], top.ids[:, 0])


@pytest.mark.usefixtures("small_shards")
def test_stored_shards_are_not_made_again_and_are_paid_by_who_made_them(
    trainer: Trainer, train_recipe: Train, tmp_path: Path
) -> None:
    cache = cache_of(trainer, train_recipe, tmp_path, 8, 3, paid_by="first")
    assert cache.missing(3 * 8) == cache.missing(8) == []
    assert cache.missing(20 * 8) == [(24, 64), (64, 104), (104, 144), (144, 160)]
    before = {path: path.stat().st_mtime_ns for path in cache.path.rglob("*.bin")}
    longer = cache_of(trainer, train_recipe, tmp_path, 8, 6, paid_by="second")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert longer.missing(6 * 8) == []
    costs = [longer.cost(name)[0] for name in ("first", "second", "third")]
    assert costs == [3 * 128, 3 * 128, 0]


@pytest.mark.usefixtures("small_shards")
def test_stop_within_a_shard_leaves_whole_shards_only(
    trainer: Trainer, train_recipe: Train, tmp_path: Path
) -> None:
    cache = cache_of(trainer, train_recipe, tmp_path, 8, 5)
    reference = FrozenReference(trainer.reference, trainer.settings, 1.0)

    def asked(done: int) -> None:
        raise Interrupted("stopped", "")

    with pytest.raises(Interrupted):
        cache.write(cache.missing(80)[0], reference, "kd", asked)
    assert [path.name for path in cache.path.iterdir() if "shard" in path.name] == [
        "shard-0000000000-0000000040"
    ]
    assert cache.missing(80) == [(40, 80)]


def test_changed_shard_is_refused_by_name(
    trainer: Trainer, train_recipe: Train, tmp_path: Path
) -> None:
    cache = cache_of(trainer, train_recipe, tmp_path, 8, 2)
    victim = next(cache.path.rglob("log_p.bin"))
    content = bytearray(victim.read_bytes())
    content[5] ^= 1
    victim.write_bytes(content)
    again = cache_of(trainer, train_recipe, tmp_path, 8, 2)
    with pytest.raises(DataError, match=r"log_p\.bin is not what was written"):
        again.distribution(torch.zeros(8, 16, dtype=torch.int64), 0)


# -- whole runs


VARIANTS = {
    "target": {"start": "inherit", "distill": {"alpha": 0.5}},
    "kd": {"start": "fresh", "distill": {"top_k": 16, "temperature": 2}},
    "kd-again": {"start": "fresh", "distill": {"alpha": 0, "top_k": 16, "temperature": 2}},
    "scratch": {"start": "fresh"},
}


@pytest.fixture(scope="module")
def run(
    tiny_reference: Path, tiny_text: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, RecipeFile]:
    root = tmp_path_factory.mktemp("distilled") / "tiny"
    recipe = recipe_of(tiny_reference, tiny_text, **VARIANTS)
    execute(recipe, root)
    return root, recipe


def test_the_ledger_names_the_references_forwards_and_counts_them_once(
    run: tuple[Path, RecipeFile],
) -> None:
    record = Run(run[0]).read()
    each = record["variants"][0]["flops_per_token"] / 3  # of the reference, forward
    named = {e["item"]: e["flops"] for e in record["ledger"] if "forwards" in e["item"]}
    assert named == {
        "target, round 1, 2 layers: forwards of the reference": pytest.approx(each * 1280),
        "kd, 2 layers: forwards of the reference": pytest.approx(each * 1280),
        "kd-again, 2 layers: forwards of the reference": 0.0,
    }
    flops = {row["name"]: row["flops"] for row in record["variants"]}
    assert flops["target"] - flops["scratch"] == pytest.approx(each * 1280)
    trained = sum(flops[name] for name in VARIANTS)
    counted = sum(e["flops"] for e in record["ledger"][1:])
    assert counted == pytest.approx(trained + record["ledger"][1]["flops"])
    assert counted == pytest.approx(record["result"]["flops"])


def test_the_plan_counts_what_the_run_then_spends(
    run: tuple[Path, RecipeFile], tmp_path: Path
) -> None:
    root, recipe = run
    plan = plan_recipe(recipe.recipe, tmp_path / "planned")
    done = {row["name"]: row for row in Run(root).read()["variants"]}
    for training in plan.trainings:
        row = done[training.name]
        spent = row["flops_per_token"] * row["tokens"] + row["reference_flops"]
        assert training.flops == pytest.approx(spent)
        assert (training.reference_flops or 0.0) == pytest.approx(row["reference_flops"])
    assert plan.memory.reference == 4 * plan.reference_params
    assert plan.disk["logits"] == 1280 * (16 * (2 + 2) + 4)
    stored = sum(path.stat().st_size for path in (root / "reference").rglob("*.bin"))
    assert plan.disk["logits"] == stored
    assert any("forward passes for target, kd:" in note for note in plan.notes)


def test_stacking_and_equal_compute_learn_from_the_reference_as_planned(
    tiny_reference: Path, tiny_text: Path, tmp_path: Path
) -> None:
    variants = {
        "target": {"start": "inherit", "distill": {}},
        "stacked": {"start": "stacking", "distill": {"top_k": 16}},
        "equal": {"start": "fresh", "tokens": "equal_compute", "distill": {}},
    }
    recipe = recipe_of(tiny_reference, tiny_text, **variants)
    plan = plan_recipe(recipe.recipe, tmp_path / "planned")
    execute(recipe, tmp_path / "tiny")
    record = Run(tmp_path / "tiny").read()
    done = [*record["rounds"], *record["variants"][2:]]  # after the reference and the target
    assert [row["name"] for row in done] == ["target", "stacked", "stacked", "equal"]
    assert all(row["distill"] for row in done)
    for training, row in zip(plan.trainings, done, strict=True):
        assert (training.layers, training.tokens) == (row["layers"], row["tokens"])
        assert training.reference_flops == pytest.approx(row["reference_flops"])
    assert plan.trainings[3].tokens == 1280
    stored = sum(path.stat().st_size for path in (tmp_path / "tiny").rglob("logits/**/*.bin"))
    assert plan.disk["logits"] == stored == 2 * 1280 * (16 * (2 + 2) + 4)


def test_only_a_variant_that_is_distilled_says_so_in_its_inputs(
    run: tuple[Path, RecipeFile],
) -> None:
    root, _ = run
    inputs = {
        name: json.loads((Run(root).variant(name, 2) / "result.json").read_text())["inputs"]
        for name in VARIANTS
    }
    assert inputs["target"]["distill"] == {"alpha": 0.5, "temperature": 1.0, "top_k": None}
    kd = {"alpha": 0.6, "temperature": 2.0, "top_k": 16, "tempered": "the k ids"}
    assert inputs["kd"]["distill"] == kd
    assert "distill" not in inputs["scratch"]
    rows = (Run(root).variant("kd", 2) / "metrics.jsonl").read_text()
    assert '"kl": ' in rows


def test_notes_say_that_compared_losses_are_cross_entropy(
    run: tuple[Path, RecipeFile],
) -> None:
    record = Run(run[0]).read()
    notes = [note for note in record["notes"] if "distributions" in note]
    assert len(notes) == 3
    assert "0.5 x cross-entropy + 0.5 x KL divergence" in notes[0]
    assert "0.4 x 2^2 x KL divergence over the 16 likeliest ids" in notes[1]
    assert typed(record).scratch.name == "scratch"
    assert "fresh weights, distilled" in variants_table(typed(record)).csv()


def test_another_alpha_is_refused_with_both_values(
    run: tuple[Path, RecipeFile], tiny_reference: Path, tiny_text: Path
) -> None:
    changed = VARIANTS | {"target": {"start": "inherit", "distill": {"alpha": 0.7}}}
    with pytest.raises(RecipeError, match=r"distill\.alpha = 0\.5; now it is 0\.7"):
        execute(recipe_of(tiny_reference, tiny_text, **changed), run[0])


def test_a_run_stopped_while_the_reference_predicts_ends_the_same(
    run: tuple[Path, RecipeFile], tmp_path: Path
) -> None:
    root, recipe = run
    asked = False

    def on_progress(progress: Progress) -> None:
        nonlocal asked
        if not asked and progress.task == "kd, 2 layers, reference" and progress.done > 20:
            asked = True
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        execute(recipe, tmp_path / "tiny", on_progress)
    execute(recipe, tmp_path / "tiny", on_progress)
    one, other = (Run(path).read()["variants"] for path in (root, tmp_path / "tiny"))
    for key in ("val_loss", "flops", "reference_flops"):
        assert [row.get(key) for row in one] == [row.get(key) for row in other]


@pytest.mark.parametrize(
    ("distill", "message"),
    [
        ({"alpha": 1.1}, r"distill\.alpha"),
        ({"alpha": {"peak": 0.1}}, r"distill\.alpha\.end is missing"),
        ({"alpha": {"peak": 0.1, "end": 2.0}}, r"distill\.alpha\.end is 2\.0"),
        ({"alpha": {"peek": 0.1, "end": 1.0}}, r"distill\.alpha\.peek is not a key.*alpha\.peak"),
    ],
)
def test_wrong_alphas_are_refused_by_name(
    distill: dict[str, object], message: str, tiny_reference: Path, tiny_text: Path
) -> None:
    with pytest.raises(RecipeError, match=message):
        made_recipe(
            Tree(
                "the recipe",
                {
                    "name": "tiny",
                    "reference": {"model": str(tiny_reference)},
                    "data": {"source": str(tiny_text)},
                    "train": {"tokens": 1280},
                    "variants": {"target": {"start": "inherit", "distill": distill}},
                },
            )
        )


def test_alpha_schedule_beside_a_constant_rate_is_refused_with_the_way_out(
    tiny_reference: Path, tiny_text: Path
) -> None:
    target = {"start": "inherit", "distill": {"alpha": {"peak": 0.1, "end": 1.0}}}
    constant = {"train": {"schedule": "constant"}}
    with pytest.raises(ValidationError, match="constant never lowers: give a number, such as"):
        recipe_of(tiny_reference, tiny_text, constant, target=target)


def test_stored_logits_serve_every_temperature(
    trainer: Trainer, train_recipe: Train, tmp_path: Path
) -> None:
    cache = cache_of(trainer, train_recipe, tmp_path, 8, 2)
    made_from = {"reference": "abc"}
    warm = LogitCache(tmp_path, made_from, trainer.stream, train_recipe, 8, 2.0, 320)
    assert warm.path == cache.path
    assert warm.missing(2 * 8) == []
    one, other = (c.distribution(torch.zeros(8, 16, dtype=torch.int64), 0) for c in (cache, warm))
    assert torch.equal(one.log_p, other.log_p)
    assert (one.temperature, other.temperature) == (1.0, 2.0)


def test_more_ids_than_there_are_cannot_be_kept(
    tiny_reference: Path, tiny_text: Path, tmp_path: Path
) -> None:
    target = {"start": "inherit", "distill": {"top_k": 400}}
    with pytest.raises(RecipeError, match=r"variants\.target\.distill\.top_k is 400"):
        execute(recipe_of(tiny_reference, tiny_text, target=target), tmp_path / "tiny")


def test_the_proofs_hold_for_samples_longer_than_the_tokens_that_are_proven(
    plain: Settings,
) -> None:
    samples = SAMPLES[:1].repeat(1, 200)[:, :150]
    for source in (
        FrozenReference(llama(1, 1), plain, 1.0),
        StoredDistribution(TopK.of(torch.randn(149, 320), 5), 320),
    ):
        make_objective(llama(0, 1), Distillation(source, 0.6), samples)
