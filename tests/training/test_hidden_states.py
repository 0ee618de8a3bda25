"""The loss on hidden states, and trainings with it."""

import copy
import json
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from distilled_models import SAMPLES, X, Y, llama, recipe_of
from pydantic import ValidationError
from small_trainings import assert_same, start_training, values_of
from torch.nn import functional as F

from inheritune.data.tokens import TokenDirectory
from inheritune.errors import Interrupted, SourceError
from inheritune.planning.recipe_plan import plan_recipe
from inheritune.recipe.training import Train
from inheritune.recipe.variants import AlphaSchedule, Hidden
from inheritune.run import derive
from inheritune.run.execute import execute
from inheritune.run_directory import Run
from inheritune.training.distillation import Distillation, FrozenReference, make_objective
from inheritune.training.fsdp import layer_modules
from inheritune.training.hardware import Settings
from inheritune.training.hidden_states import compared_layers
from inheritune.training.kl_divergence import DistillationObjective

MAPS = {"prefix": (0, 1), "both ends": (0, 4), "late": (2, 3), "all": (0, 1, 2, 3, 4)}


def objective_of(
    settings: Settings,
    layer_map: tuple[int, ...],
    section: Hidden,
    alpha: float = 0.3,
    dtype: torch.dtype = torch.float32,
) -> tuple[DistillationObjective, torch.nn.Module, torch.nn.Module]:
    """A target with random weights against a reference of five layers."""
    model, reference = llama(0, len(layer_map)).to(dtype), llama(1, 5).to(dtype)
    source = FrozenReference(reference, settings, 1.0)
    made = make_objective(model, Distillation(source, alpha, section, layer_map), SAMPLES)
    return made, model, reference


def states_of(model: torch.nn.Module) -> tuple[list[torch.Tensor], torch.Tensor]:
    """What plain transformers gives: the input of each layer, then what the final norm is given."""
    before_norm = []
    handle = model.model.norm.register_forward_pre_hook(
        lambda module, args: before_norm.append(args[0])
    )
    output = model(input_ids=X, output_hidden_states=True)
    handle.remove()
    return [*output.hidden_states[:-1], before_norm[0]], output.logits


def by_formula(
    model: torch.nn.Module, reference: torch.nn.Module, layer_map: tuple[int, ...], section: Hidden
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """The whole loss in fp64 with alpha 0.3, by autograd; and the distance in it."""
    ours, theirs = copy.deepcopy(model).double(), copy.deepcopy(reference).double()
    a, z = states_of(ours)
    with torch.no_grad():
        b, z_reference = states_of(theirs)
    after = [*layer_map[1:], 5]  # the layer that comes behind each of the target's
    distance, valid = torch.zeros((), dtype=torch.float64), Y != -100
    for j, behind in enumerate(after):
        x, y = a[j + 1][valid], b[behind][valid]
        if section.loss == "cosine":
            distance = distance + (1 - F.cosine_similarity(x, y, dim=-1)).sum()
        else:
            distance = distance + ((x - y).square().sum(-1) / y.square().sum(-1)).sum()
    ce = F.cross_entropy(z[valid], Y[valid], reduction="sum")
    log_q, p = z[valid].log_softmax(-1), z_reference[valid].softmax(-1)
    loss = 0.3 * ce + 0.7 * F.kl_div(log_q, p, reduction="sum") + section.weight * distance
    loss.backward()
    return loss, distance, {name: param.grad for name, param in ours.named_parameters()}


@pytest.mark.parametrize("loss", ["cosine", "nmse"])
@pytest.mark.parametrize("name", MAPS)
def test_the_loss_and_all_gradients_equal_plain_transformers_and_autograd(
    name: str, loss: str, plain: Settings
) -> None:
    section = Hidden(loss=loss, weight=2.0)
    objective, model, reference = objective_of(plain, MAPS[name], section)
    sums = objective(X, Y)
    sums[0].backward()
    expected, distance, gradients = by_formula(model, reference, MAPS[name], section)
    assert float(sums[0].detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert float(sums[3].detach()) == pytest.approx(float(distance.detach()), rel=1e-5)
    for key, parameter in model.named_parameters():
        gap = (parameter.grad.double() - gradients[key]).norm()
        assert gap <= 2e-5 * gradients[key].norm() + 1e-7, key


def test_each_layer_is_compared_where_the_next_one_was_taken_from() -> None:
    assert compared_layers(range(4), 12) == [0, 1, 2, 11]
    assert compared_layers([0, 1, 5, 11], 12) == [0, 4, 10, 11]
    assert compared_layers([3], 12) == [11]
    assert compared_layers(range(12), 12) == list(range(12))


def test_a_copy_of_the_reference_has_no_distance_and_a_fresh_model_has(plain: Settings) -> None:
    reference = llama(1, 5)
    for model, least, most in ((copy.deepcopy(reference), -1e-5, 1e-5), (llama(0, 5), 0.5, 10)):
        source = FrozenReference(copy.deepcopy(reference), plain, 1.0)
        distillation = Distillation(source, 0.0, Hidden(), range(5))
        sums = make_objective(model, distillation, SAMPLES)(X, Y)
        assert least <= float(sums[3].detach()) / int((Y != -100).sum()) <= most


@pytest.mark.parametrize("how", ["recomputed", "compiled", "both"])
def test_recomputed_and_compiled_layers_have_the_same_loss_and_gradients(
    how: str, plain: Settings
) -> None:
    expected, whole, _ = objective_of(plain, (0, 3), Hidden())
    expected(X, Y)[0].backward()
    objective, model, reference = objective_of(plain, (0, 3), Hidden())
    model.train()
    if how != "compiled":
        model.activation_checkpointing_enable({"use_reentrant": False})
    if how != "recomputed":
        for layer in layer_modules(model) + layer_modules(reference):
            layer.compile(backend="aot_eager")
    for _ in range(2):  # the hooks are ready for a second step
        model.zero_grad()
        sums = objective(X, Y)
        sums[0].backward()
    assert float(sums[0].detach()) == pytest.approx(float(expected(X, Y)[0].detach()), rel=1e-6)
    for (key, one), other in zip(model.named_parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-4, msg=key)


def test_of_the_reference_one_hidden_state_is_held_at_a_time(plain: Settings) -> None:
    objective, _, reference = objective_of(plain, MAPS["all"], Hidden())
    alive: list[weakref.ref[torch.Tensor]] = []
    counts = []

    def count(module: torch.nn.Module, args: object, output: torch.Tensor) -> None:
        alive.append(weakref.ref(output))
        counts.append(sum(ref() is not None for ref in alive))

    for layer in layer_modules(reference):
        layer.register_forward_hook(count)
    objective(X, Y)[0].backward()
    # A layer's output, and its input, which the layer itself still holds.
    assert counts[0] == 1
    assert max(counts) <= 2


def test_layers_that_overwrite_the_state_before_them_are_refused(plain: Settings) -> None:
    objective, model, _ = objective_of(plain, (0, 1), Hidden())

    def overwrite(module: torch.nn.Module, args: object, output: torch.Tensor) -> None:
        with torch.no_grad():
            output.add_(1)

    layer_modules(model)[0].register_forward_hook(overwrite)
    with pytest.raises(SourceError, match="overwritten by the layer behind it"):
        objective(X, Y)


def test_states_of_another_width_are_refused_with_both_shapes(plain: Settings) -> None:
    source = FrozenReference(llama(1, 3, hidden_size=48), plain, 1.0)
    distillation = Distillation(source, 0.0, Hidden(), (0, 1))
    objective = make_objective(llama(0, 2), distillation, SAMPLES)
    with pytest.raises(SourceError, match=r"\(3, 16, 32\), the reference's \(3, 16, 48\)"):
        objective(X, Y)


def test_bf16_distances_are_near_those_of_fp32(plain: Settings) -> None:
    bf16 = replace(plain, precision="bf16")
    objective, model, _ = objective_of(bf16, (0, 3), Hidden())
    with bf16.autocast():
        sums = objective(X, Y)
    sums[0].backward()
    distance = by_formula(model, llama(1, 5), (0, 3), Hidden())[1]
    assert sums.dtype == torch.float32
    assert float(sums[3].detach()) == pytest.approx(float(distance.detach()), rel=2e-2)
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


# -- trainings


def run_training(
    tokens: TokenDirectory,
    settings: Settings,
    recipe: Train,
    folder: Path,
    stop_after: int | None = None,
) -> dict[str, torch.Tensor]:
    """Two layers against five, with every option of the loss, as a new process would."""
    model, source = llama(0, 2), FrozenReference(llama(1, 5), settings, 1.0)
    alpha = AlphaSchedule(peak=0.0, end=0.5)
    distillation = Distillation(source, alpha, Hidden(loss="nmse"), (0, 3))
    where = folder, tokens.train, settings
    start_training(model, recipe, *where, stop_after, distillation=distillation)
    return model.state_dict()


def test_training_stopped_and_continued_ends_with_the_same_weights_and_rows(
    tiny_tokens: TokenDirectory, plain: Settings, train_recipe: Train, tmp_path: Path
) -> None:
    whole = run_training(tiny_tokens, plain, train_recipe, tmp_path / "whole")
    with pytest.raises(Interrupted):
        run_training(tiny_tokens, plain, train_recipe, tmp_path / "pieces", stop_after=7)
    assert_same(whole, run_training(tiny_tokens, plain, train_recipe, tmp_path / "pieces"))
    for key in ("loss", "ce", "kl", "hidden", "alpha"):
        assert values_of(tmp_path / "whole", key) == values_of(tmp_path / "pieces", key)
        assert len(values_of(tmp_path / "whole", key)) == 20
    distances = values_of(tmp_path / "whole", "hidden")
    assert sum(distances[-5:]) < 0.9 * sum(distances[:5])
    rows = {k: values_of(tmp_path / "whole", k) for k in ("loss", "ce", "kl", "hidden", "alpha")}
    for loss, ce, kl, hidden, alpha in zip(*rows.values(), strict=True):
        assert loss == pytest.approx(alpha * ce + (1 - alpha) * kl + 2 * hidden)


def test_a_step_does_not_depend_on_micro_batches(
    tiny_tokens: TokenDirectory, plain: Settings, train_recipe: Train, tmp_path: Path
) -> None:
    short = train_recipe.model_copy(update={"tokens": 640})
    run_training(tiny_tokens, plain, short, tmp_path / "8")
    run_training(tiny_tokens, plain, short.model_copy(update={"micro_batch": 2}), tmp_path / "2")
    for key in ("loss", "kl", "hidden"):
        whole = values_of(tmp_path / "8", key)
        assert values_of(tmp_path / "2", key) == pytest.approx(whole, rel=1e-4)


# -- whole runs


def test_rounds_and_controls_compare_by_their_own_layers_as_planned(
    tiny_reference: Path, tiny_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distill = {"alpha": 0.0, "hidden": {"weight": 1.0}}
    variants = {
        "target": {"start": "inherit", "distill": distill},
        "ends": {"start": "inherit", "select": "last", "layers": 2, "distill": distill},
        "grown": {"start": "grown", "distill": distill},
    }
    where = tiny_reference, tiny_text, {"inherit": {"layers": 1}, "grow": {"add": 1}}
    monkeypatch.setattr(derive, "judge", lambda *_: "not_matched")
    recipe = recipe_of(*where, **variants)
    plan = plan_recipe(recipe.recipe, tmp_path / "planned")
    execute(recipe, tmp_path / "tiny")
    record = Run(tmp_path / "tiny").read()
    done = {(row["name"], row["layers"]): row for row in [*record["rounds"], *record["variants"]]}
    assert {name for name, _ in done} >= {"target", "ends", "grown"}
    width = json.loads((tiny_reference / "config.json").read_text())["hidden_size"]
    forward = record["variants"][0]["flops_per_token"] / 3
    for training in plan.trainings:
        row = done[training.name, training.layers]
        expected = (forward + 12 * width * training.layers) * row["tokens"]
        assert row["reference_flops"] == pytest.approx(expected)
        assert training.reference_flops == pytest.approx(expected)
    notes = [note for note in record["notes"] if "cosine distance of hidden states" in note]
    assert len(notes) == 3
    without = {k: v | {"distill": {"alpha": 0.0}} for k, v in variants.items()}
    other = plan_recipe(recipe_of(*where, **without).recipe, tmp_path / "planned").memory
    slopes = 4 * 8 * 16 * width * plan.trainings[1].layers
    assert plan.memory.activations - other.activations == slopes


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ({"start": "fresh", "distill": {"hidden": {}}}, "fresh has none of the same width"),
        ({"start": "half-width", "distill": {"hidden": {}}}, "half-width has none of the same"),
        ({"start": "stacking", "distill": {"hidden": {}}}, "stacking has none of the same"),
        (
            {"start": "inherit", "select": "last", "distill": {"hidden": {}, "top_k": 8}},
            "leave top_k or hidden out",
        ),
        ({"start": "inherit", "select": "last", "distill": {"hidden": {"loss": "l2"}}}, "cosine"),
        ({"start": "inherit", "select": "last", "distill": {"hidden": {"weight": 0}}}, "weight"),
    ],
)
def test_hidden_states_that_cannot_be_compared_are_refused_in_the_recipe(
    variant: dict[str, object], message: str, tiny_reference: Path, tiny_text: Path
) -> None:
    with pytest.raises(ValidationError, match=message):
        recipe_of(tiny_reference, tiny_text, target={"start": "inherit"}, other=variant)
