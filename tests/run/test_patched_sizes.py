"""Runs that try larger sizes with no training: layers of the reference put back."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from tiny_recipe import as_file, recipe_of

import inheritune
from inheritune.errors import Interrupted, UnsupportedModelError
from inheritune.model_files.directory import open_model
from inheritune.planning.recipe_plan import plan_recipe
from inheritune.recipe.variants import Grow
from inheritune.run.execute import RunResult, execute
from inheritune.run_directory import Run
from inheritune.steps import family
from inheritune.steps.growth import Growth
from inheritune.surgery.sizes import Sizes
from inheritune.verification.model import verify_model


@pytest.fixture(scope="module")
def five_layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("five") / "reference"
    return tiny_models.tiny_reference(path, num_hidden_layers=5)


def recipe_for(model: Path, text: Path, **grow: Any) -> Any:
    return recipe_of(
        model,
        text,
        inherit={"layers": None, "select": "0,4"},
        grow={"add": 2, "max_rounds": 2, "patch": True} | grow,
        variants={"inherit": {"start": "inherit"}},
    )


def judge_as(patch: pytest.MonkeyPatch, *sizes: tuple[int, bool]) -> None:
    """Have only these sizes match: layers, and whether they are untrained."""

    def judge(result: Any, limit: Any) -> str:
        return "matched" if (result.layers, result.is_patched) in sizes else "not_matched"

    patch.setattr("inheritune.run.derive.judge", judge)


def with_task_loss(job: Any, result: Any, reference: Any) -> Any:
    return replace(result, task_loss={"mean": 0.25, "se": None, "tasks": ["one"]})


@pytest.fixture
def matches_at(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    return partial(judge_as, monkeypatch)


@pytest.fixture(scope="module")
def finished(
    five_layers: Path, tiny_text: Path, tmp_path_factory: pytest.TempPathFactory
) -> RunResult:
    """A run whose target of three layers matched with no training of its own."""
    with pytest.MonkeyPatch.context() as patched:
        judge_as(patched, (3, True))
        patched.setattr(family, "with_task_loss", with_task_loss)
        recipe = as_file(recipe_for(five_layers, tiny_text))
        result = execute(recipe, tmp_path_factory.mktemp("finished") / "run")
    assert result is not None
    return result


def test_a_size_that_matches_for_no_token_is_the_target(finished, five_layers):
    assert (finished.layers, finished.verdict) == (3, "matched")
    run = Run(finished.run).read()
    rounds = [(row["layers"], row["start"]) for row in run["rounds"]]
    assert rounds == [(2, "inherit"), (3, "patched")]
    target = run["rounds"][1]
    assert target["tokens"] == 0 and target["is_target"]
    back = json.loads((finished.target / "inherit.json").read_text())["layer_map"][1]
    assert target["made_of"] == (
        f"2 trained layers of inherit, and layer {back} of the reference, untrained"
    )
    # Each size is measured once, and none but the target stays on the disk.
    untrained = [row for row in run["ledger"] if row["item"].endswith("untrained")]
    assert [row["item"] for row in untrained] == [
        "inherit, 3 layers, 1 untrained",
        "inherit, 4 layers, 2 untrained",
    ]
    sizes = Run(finished.run).record().family
    assert [(row.trained_layers, row.layers) for row in sizes] == [(2, 2), (2, 3), (2, 4)]
    assert [len(row.returned) for row in sizes] == [0, 1, 2] and sizes[1].returned == [back]
    assert sizes[1].val_loss == finished.val_loss
    assert all(row["flops"] > 0 and row["tokens"] == 0 for row in untrained)
    models = sorted(p.parent.name for p in finished.run.glob("patched/inherit/*/model"))
    assert models == ["3-from-2-layers"]
    whole = open_model(str(five_layers))
    proofs = {f.part: f for f in verify_model(open_model(str(finished.target)), whole)}
    assert proofs["bytes"].proven and "came back equal the reference's" in proofs["bytes"].text


def test_a_plan_says_what_the_untrained_sizes_take(five_layers, tiny_text, tmp_path):
    plan = plan_recipe(recipe_for(five_layers, tiny_text), tmp_path / "run")
    sizes, known = Sizes(open_model(str(five_layers))), {2, 3, 4}
    each = {n: sizes.counts(range(n), 16).flops_per_token / 3 for n in known}
    (note,) = [note for note in plan.notes if note.startswith("grow.patch")]
    assert f"takes {each[3] + each[4]:.1e} FLOPs for each token of the validation text" in note


def test_the_loss_of_a_patched_target_is_that_of_its_model(finished):
    measured = inheritune.evaluate(
        finished.target, tokens=finished.run / "tokens", seq_len=16, progress=False
    )
    assert measured.rows()[0]["value"] == finished.val_loss


def test_a_finished_run_measures_no_size_again_and_writes_none(
    finished, five_layers, tiny_text, matches_at, monkeypatch
):
    matches_at((3, True))
    before = (finished.run / "family.json").read_bytes()

    def refuse(*arguments: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(family, "val_loss_of", refuse)
    monkeypatch.setattr(family, "patch", refuse)
    monkeypatch.setattr(family, "with_task_loss", with_task_loss)
    recipe = as_file(recipe_for(five_layers, tiny_text))
    assert execute(recipe, finished.run).layers == 3
    assert (finished.run / "family.json").read_bytes() == before


def test_family_json_of_a_run_says_which_layers_patch_puts_back(finished, five_layers, tmp_path):
    kept = finished.run / "family.json"
    members = json.loads(kept.read_text())["families"][0]["members"]
    # Tasks are asked of what may match alone.
    assert [member["task_loss"] for member in members] == [None, 0.25, None]
    model = finished.run / "variants" / "inherit" / "2-layers" / "model"
    inheritune.patch(model, five_layers, 4, tmp_path / "four", family=kept, progress=False)
    record = json.loads((tmp_path / "four" / "inherit.json").read_text())
    assert record["layer_map"] == members[2]["layer_map"]
    loss = inheritune.evaluate(
        tmp_path / "four", tokens=finished.run / "tokens", seq_len=16, progress=False
    )
    assert loss.rows()[0]["value"] == members[2]["val_loss"]


def test_a_run_stopped_between_sizes_goes_on_with_the_next(
    five_layers, tiny_text, tmp_path, matches_at, monkeypatch
):
    matches_at((4, True))
    recipe, root = recipe_for(five_layers, tiny_text), tmp_path / "run"
    real, titles = family.val_loss_of, []

    def stop_at_the_second(job, model, tokens, title):
        titles.append(title)
        if len(titles) == 2:
            raise Interrupted("stopped by SIGTERM; a test.")
        return real(job, model, tokens, title)

    monkeypatch.setattr(family, "val_loss_of", stop_at_the_second)
    with pytest.raises(Interrupted):
        execute(as_file(recipe), root)
    assert execute(as_file(recipe), root).layers == 4
    assert titles == [
        "inherit, 3 layers, untrained",
        "inherit, 4 layers, untrained",
        "inherit, 4 layers, untrained",
    ]


@pytest.mark.parametrize("weights", ["keep", "reinherit"])
def test_a_round_is_trained_where_no_size_up_to_it_matches(
    five_layers, tiny_text, tmp_path, matches_at, weights
):
    matches_at((4, False))
    recipe = recipe_for(five_layers, tiny_text, weights=weights)
    execute(as_file(recipe), tmp_path / "run")
    run = Run(tmp_path / "run").read()
    assert [(row["layers"], row["start"]) for row in run["rounds"]] == [
        (2, "inherit"),
        (4, "inherit"),
    ]
    families = json.loads((tmp_path / "run" / "family.json").read_text())["families"]
    assert [[m["layers"] for m in one["members"]] for one in families] == [[2, 3, 4]]


def test_layers_come_back_into_the_target_of_every_seed(
    five_layers, tiny_text, tmp_path, matches_at
):
    matches_at((3, True))
    recipe = recipe_for(five_layers, tiny_text).model_copy(update={"seeds": [0, 1]})
    execute(as_file(recipe), tmp_path / "run")
    row = Run(tmp_path / "run").record().target_row
    assert (row.layers, row.start, row.num_seeds) == (3, "patched", 2)
    assert [seed.path for seed in row.seeds] == [
        "patched/inherit/3-from-2-layers",
        "patched/inherit/3-from-2-layers-seed-1",
    ]
    assert row.seeds[0].val_loss != row.seeds[1].val_loss


def test_sizes_have_the_divergence_that_a_criterion_asks_for(five_layers, tiny_text, tmp_path):
    recipe = recipe_for(five_layers, tiny_text, add=0, match={"val_loss": None, "kl": 1e-9})
    execute(as_file(recipe), tmp_path / "run", must_match=False)
    run = Run(tmp_path / "run").record()
    kl = [row.kl for row in run.family]
    assert all(kl) and len(set(kl)) == 3
    members = json.loads((tmp_path / "run" / "family.json").read_text())["families"][0]["members"]
    assert [member["kl"] for member in members] == kl
    assert sum(entry.item.endswith("untrained: fidelity") for entry in run.ledger) == 2


def test_only_sizes_up_to_the_next_round_end_the_search():
    growth = Growth(Grow(add=2, patch=True), tuple(range(3, 10)), total=9)
    assert growth.above(3) == [4, 5, 6, 7, 8]
    assert growth.before_next({3: False}) == [4, 5]
    assert growth.before_next({3: True}) == []
    assert growth.before_next({3: False, 5: False}) == [6, 7]
    alone = Growth(Grow(add=0, patch=True), (3, 4, 5, 6), total=6)
    assert alone.before_next({3: False}) == [4, 5]
    halves = Growth(Grow(search="bisect", patch=True), tuple(range(2, 10)), total=9)
    assert halves.before_next({2: False, 6: True}) == []
    assert halves.before_next({2: False, 6: True, 4: False}) == [5]


def test_sizes_that_cannot_be_are_refused_at_plan_time(tiny_text, tmp_path):
    tiny_models.save_gemma3n(tmp_path / "reference")
    recipe = recipe_of(
        tmp_path / "reference", tiny_text, inherit={"layers": 5}, grow={"patch": True}
    )
    with pytest.raises(UnsupportedModelError, match="a part for each of them"):
        plan_recipe(recipe, tmp_path / "run")
