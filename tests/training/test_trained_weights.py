"""Trainings that change some of the weights: `train.only`."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from distilled_models import llama, recipe_of
from pydantic import ValidationError
from small_trainings import assert_same, start_training, values_of
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, GPT2Config

from inheritune.data.tokens import TokenDirectory
from inheritune.errors import Interrupted, RecipeError
from inheritune.planning.recipe_plan import plan_recipe
from inheritune.recipe.training import Train
from inheritune.run.execute import execute
from inheritune.run_directory import Run
from inheritune.steps.training_spec import trained_parts
from inheritune.training.distillation import Distillation, FrozenReference
from inheritune.training.hardware import Settings
from inheritune.training.loss import TrainingObjective
from inheritune.training.models import load_model
from inheritune.training.sharded_safetensors import SavedTensors
from inheritune.training.throughput import flops_per_token
from inheritune.training.trained_weights import freeze_all_but, lowest_trained_layer

X = torch.randint(0, 320, (2, 16), generator=torch.Generator().manual_seed(0))


def gpt2() -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = {"n_layer": 4, "n_embd": 32, "n_head": 4, "vocab_size": 320, "n_positions": 32}
    return AutoModelForCausalLM.from_config(GPT2Config(**sizes))


def trained_names(model: torch.nn.Module, *only: str) -> set[str]:
    freeze_all_but(model, only)
    return {name for name, param in model.named_parameters() if param.requires_grad}


def test_names_stand_for_the_weights_of_the_live_model() -> None:
    model = llama(0, 4)
    everything = {name for name, _ in model.named_parameters()}
    norms = {name for name in everything if "norm" in name}
    assert trained_names(model, "head") == {"lm_head.weight"}
    assert trained_names(model, "embeddings") == {"model.embed_tokens.weight"}
    assert trained_names(model, "norms") == norms
    assert len(norms) == 2 * 4 + 1
    layers = {i: {n for n in everything if f".layers.{i}." in n} for i in range(4)}
    assert trained_names(model, "last:3") == layers[1] | layers[2] | layers[3]
    assert trained_names(model, "0,2", "head") == layers[0] | layers[2] | {"lm_head.weight"}
    assert trained_names(model, "strided:2") == layers[0] | layers[3]


def test_positions_are_embeddings_and_a_tied_head_is_the_embedding() -> None:
    embeddings = {"transformer.wte.weight", "transformer.wpe.weight"}
    assert trained_names(gpt2(), "embeddings") == embeddings
    assert trained_names(gpt2(), "head") == {"transformer.wte.weight"}
    norms = trained_names(gpt2(), "norms")
    assert {"transformer.ln_f.bias", "transformer.h.3.ln_2.weight"} < norms
    assert all(".ln_" in name for name in norms)


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("heads", "only: heads names nothing", "Did you mean head"),
        (
            "last:5",
            "only: last:5 names nothing",
            "There is embeddings, head, norms, and layers 0-3",
        ),
        ("lats:2", "only: lats:2 names nothing", "Did you mean last"),
        ("7", "only: 7 names nothing", "layers 0-3"),
        ("lazy:2", "only: lazy:2 names nothing", "layers 0-3"),
        ("", "names nothing", "layers 0-3"),
    ],
)
def test_a_name_that_stands_for_nothing_is_refused_with_what_there_is(
    name: str, message: str, hint: str
) -> None:
    with pytest.raises(RecipeError, match=message) as refusal:
        freeze_all_but(llama(0, 4), ["norms", name])
    assert hint in refusal.value.hint


@pytest.mark.parametrize(
    ("only", "tied", "lowest"),
    [
        (["head"], False, 4),
        (["head"], True, 0),
        (["last:3", "head"], False, 1),
        (["last:1"], True, 3),
        (["norms"], False, 0),
        (["embeddings"], False, 0),
    ],
)
def test_no_gradient_passes_below_the_lowest_trained_layer(
    only: list[str], tied: bool, lowest: int
) -> None:
    model = llama(0, 4, tie_word_embeddings=tied)
    freeze_all_but(model, only)
    assert lowest_trained_layer(model) == lowest
    carries = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda *of: carries.append(of[2].requires_grad))
    TrainingObjective(model, avoids_logits=False)(X[:, :-1], X[:, 1:]).backward()
    assert carries == [number >= lowest for number in range(4)]
    for _, param in model.named_parameters():
        assert (param.grad is not None) == param.requires_grad


@pytest.mark.parametrize(
    "only", [["head"], ["last:1"], ["last:2", "head"], ["0,3"], ["embeddings"], ["last:3", "norms"]]
)
def test_flops_are_those_that_torch_counts(only: list[str]) -> None:
    # Few tokens, so that attention, which torch counts in full and we by half, hardly matters.
    model = llama(0, 4)
    x = X[:1, :3]

    def counted() -> float:
        model.zero_grad()
        with FlopCounterMode(display=False) as counter:
            TrainingObjective(model, avoids_logits=False)(x[:, :-1], x[:, 1:]).backward()
        return counter.get_total_flops() / 2

    freeze_all_but(model, only)
    ours, torchs = flops_per_token(model, 2), counted()
    # What torch leaves out: gradients of the input of the lowest trained layer's first products.
    first = lowest_trained_layer(model)
    spared = 0
    if first < 4 and only != ["embeddings"]:
        layer = model.model.layers[first].self_attn
        is_norm_trained = any("norm" in name for name in trained_of(model, first))
        products = (layer.q_proj, layer.k_proj, layer.v_proj)
        spared = 0 if is_norm_trained else 2 * sum(p.weight.numel() for p in products)
    assert torchs == pytest.approx(ours - spared, rel=2e-2)


def trained_of(model: torch.nn.Module, layer: int) -> list[str]:
    module = model.model.layers[layer]
    return [name for name, param in module.named_parameters() if param.requires_grad]


# -- trainings


class Trainer:
    """Trains copies of one model, with or without a reference."""

    def __init__(self, tokens: TokenDirectory, settings: Settings) -> None:
        self.stream, self.settings, self.distils = tokens.train, settings, False

    def __call__(
        self, recipe: Train, folder: Path, stop_after: int | None = None
    ) -> dict[str, torch.Tensor]:
        model, source = llama(0, 3), FrozenReference(llama(1, 3), self.settings, 1.0)
        distillation = Distillation(source, 0.5) if self.distils else None
        where = folder, self.stream, self.settings
        start_training(model, recipe, *where, stop_after, distillation=distillation)
        return model.state_dict()


@pytest.fixture
def trainer(tiny_tokens: TokenDirectory, plain: Settings) -> Trainer:
    return Trainer(tiny_tokens, plain)


@pytest.mark.parametrize("how", ["plain", "op", "recomputed", "distilled"])
@pytest.mark.parametrize("only", [["head"], ["last:1", "norms"], ["embeddings", "0-0"]])
def test_frozen_weights_end_bit_for_bit_as_they_began_and_have_no_optimizer_state(
    only: list[str], how: str, trainer: Trainer, train_recipe: Train, tmp_path: Path
) -> None:
    recipe = train_recipe.model_copy(update={"only": only, "tokens": 640})
    trainer.distils = how == "distilled"
    trainer.settings = replace(
        trainer.settings,
        loss="op" if how == "op" else "logits",
        activation_checkpointing=how == "recomputed",
    )
    before, after = llama(0, 3), trainer(recipe, tmp_path)
    trained = trained_names(before, *only)
    for name, weight in before.named_parameters():
        assert torch.equal(weight, after[name]) == (name not in trained), name
    saved = SavedTensors([tmp_path / "checkpoints" / "step-00000005" / "optimizer.safetensors"])
    assert {name.partition(".")[2] for name in saved.names} == trained


def test_training_all_that_there_is_is_training_everything(
    trainer: Trainer, train_recipe: Train, tmp_path: Path
) -> None:
    whole = trainer(train_recipe, tmp_path / "whole")
    only = ["embeddings", "head", "norms", "first:3"]
    named = trainer(train_recipe.model_copy(update={"only": only}), tmp_path / "named")
    assert_same(whole, named)


@pytest.mark.parametrize("distils", [False, True])
def test_a_training_stopped_and_continued_ends_the_same(
    distils: bool, trainer: Trainer, train_recipe: Train, tmp_path: Path
) -> None:
    recipe = train_recipe.model_copy(update={"only": ["last:2", "head"]})
    trainer.distils = distils
    whole = trainer(recipe, tmp_path / "whole")
    for stop in (7, 12):
        with pytest.raises(Interrupted):
            trainer(recipe, tmp_path / "pieces", stop_after=stop)
    assert_same(whole, trainer(recipe, tmp_path / "pieces"))
    assert values_of(tmp_path / "whole", "loss") == values_of(tmp_path / "pieces", "loss")


# -- whole runs


def test_a_run_freezes_what_its_variants_say_and_costs_what_was_planned(
    tiny_reference: Path, tiny_text: Path, tmp_path: Path
) -> None:
    variants = {
        "target": {"start": "inherit"},
        "norms": {"start": "inherit", "select": "first", "only": ["norms"]},
        "gap": {"start": "inherit", "select": "0,2,3", "only": ["gap"]},
        "scratch": {"start": "fresh"},
    }
    only = {"train": {"only": ["head", "last:1"]}}
    recipe = recipe_of(tiny_reference, tiny_text, only, **variants)
    plan = plan_recipe(recipe.recipe, tmp_path / "planned")
    execute(recipe, tmp_path / "tiny")
    record = Run(tmp_path / "tiny").read()
    rows = {row["name"]: row for row in record["variants"][1:]}  # behind the reference
    assert rows["target"]["made_of"].endswith("only head, last:1 trained")
    assert rows["norms"]["made_of"].endswith("only norms trained")
    assert rows["gap"]["made_of"].endswith("only 0-0 trained")
    assert rows["scratch"].get("made_of", "") == ""
    each = {name: row["flops_per_token"] for name, row in rows.items()}
    assert each["target"] < each["scratch"]
    assert each["norms"] < each["scratch"]
    for training in plan.trainings:
        assert training.flops == pytest.approx(each[training.name] * rows[training.name]["tokens"])
    # A validation passes forward through everything, whatever is trained.
    validations = {name: row["flops"] - each[name] * row["tokens"] for name, row in rows.items()}
    assert validations["target"] == pytest.approx(validations["scratch"])
    before = load_model(tiny_reference).state_dict()
    after = load_model(tmp_path / "tiny" / "target").state_dict()
    for name, weight in after.items():
        is_trained = "lm_head" in name or ".layers.1." in name
        assert torch.equal(weight, before[name]) != is_trained, name


def test_gap_names_the_layers_behind_which_others_are_left_out() -> None:
    assert trained_parts(["gap", "norms"], [0, 1, 5], 6) == ["1-1", "norms"]
    assert trained_parts(["gap"], [0, 2, 5], 6) == ["0-0,1-1"]
    assert trained_parts(["gap"], [0, 1, 2], 6) == ["2-2"]  # before the final norm
    assert trained_parts(None, [0, 1, 2], 6) is None
    with pytest.raises(RecipeError, match="only: gap names nothing: no layer is left out"):
        trained_parts(["gap"], [4, 5], 6)


def test_the_plan_needs_less_memory_and_disk_where_less_is_trained(
    tiny_reference: Path, tiny_text: Path, tmp_path: Path
) -> None:
    whole, part = (
        plan_recipe(
            recipe_of(tiny_reference, tiny_text, changes, target={"start": "inherit"}).recipe,
            tmp_path / "planned",
        )
        for changes in ({}, {"train": {"only": ["last:1"]}})
    )
    params, trained = part.trainings[0].params, part.trainings[0].trained
    assert trained is not None
    assert 0 < trained < params
    # The most is held at the loss, where there are no gradients yet.
    assert (part.memory.gradients, part.memory.moments) == (0, 8 * trained)
    assert part.memory.total < whole.memory.total
    assert part.save_bytes == 4 * params + 8 * trained < whole.save_bytes == 12 * params


@pytest.mark.parametrize(
    ("where", "only", "message"),
    [
        ("train", ["heads"], "only: heads names nothing"),
        ("train", ["last:3"], "only: last:3 names nothing"),
        ("variant", ["last:9"], "only: last:9 names nothing"),
    ],
)
def test_names_of_nothing_are_refused_in_the_plan(
    where: str, only: list[str], message: str, tiny_reference: Path, tiny_text: Path, tmp_path: Path
) -> None:
    target = {"start": "inherit"} | ({"only": only} if where == "variant" else {})
    changes = {"train": {"only": only}} if where == "train" else {}
    recipe = recipe_of(tiny_reference, tiny_text, changes, target=target).recipe
    with pytest.raises(RecipeError, match=rf"variants\.target.*{message}") as refusal:
        plan_recipe(recipe, tmp_path / "planned")
    assert "There is embeddings, head, norms, and layers 0-1" in refusal.value.hint


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ({"start": "fresh", "only": ["head"]}, "only would leave fresh weights untrained"),
        ({"start": "stacking", "only": ["head"]}, "only would leave fresh weights untrained"),
        ({"start": "fresh", "only": []}, "at least 1 item"),
    ],
)
def test_variants_that_cannot_freeze_are_refused_in_the_recipe(
    variant: dict[str, object], message: str, tiny_reference: Path, tiny_text: Path
) -> None:
    with pytest.raises(ValidationError, match=message):
        recipe_of(tiny_reference, tiny_text, target={"start": "inherit"}, other=variant)
