"""Runs whose target inherits layers beyond the prefix."""

import json
from itertools import pairwise

import numpy as np
import pytest
import tiny_models
from tiny_recipe import as_file, recipe_of

from inheritune.analysis import cut_scores, layer_scores
from inheritune.analysis.sequences import Sequences
from inheritune.data.tokens import open_tokens
from inheritune.errors import Interrupted, RecipeError, UnsupportedModelError
from inheritune.model_files.directory import open_model
from inheritune.planning.recipe_plan import plan_recipe
from inheritune.run.execute import execute
from inheritune.run.one_step import train_only
from inheritune.run_directory import Run
from inheritune.steps.growth import Growth
from inheritune.steps.training_spec import inherited_layers
from inheritune.surgery.cut import inherit
from inheritune.surgery.removal import block_cuts, without
from inheritune.surgery.ways import LayerFacts
from inheritune.training.models import load_model
from inheritune.verification.directory import verify

WAYS = ("block", "greedy", "influence", "angular", "norm-ratio", "auto")


@pytest.fixture(scope="module")
def six_layers(tmp_path_factory):
    """The first 6 layers of the embedded model, which no cut matches soon; never write into it."""
    path = tmp_path_factory.mktemp("six") / "six"
    inherit(open_model("embedded:demo"), 6, path)
    return path


@pytest.fixture(scope="module")
def finished(six_layers, tiny_text, tmp_path_factory):
    """A run whose target begins with the cheapest block and grows once, and its controls."""
    root = tmp_path_factory.mktemp("run") / "run"
    controls = {name: {"start": "inherit", "select": name, "layers": 4} for name in WAYS}
    recipe = recipe_of(
        six_layers,
        tiny_text,
        inherit={"layers": 3, "select": "block"},
        grow={"add": 1, "max_rounds": 2, "tolerance": 0},
        variants={"target": {"start": "inherit"}} | controls,
    )
    train_only(as_file(recipe), root, layers=4)  # a round that the run turns out not to need
    execute(as_file(recipe), root, must_match=False)
    return recipe, Run(root)


def layer_map(run, name, layers):
    record = run.root / "variants" / name / f"{layers}-layers" / "inherit.json"
    return tuple(json.loads(record.read_text("utf-8"))["layer_map"])


def own_scores(run, six_layers, cuts):
    """Scores of cuts on the windows that the run drew, measured here."""
    stored = json.loads(run.selection.read_text("utf-8"))
    stream = open_tokens(run.tokens).train
    length = stored["inputs"]["tokens_per_window"]
    total = stream.num_ids // length
    windows = sorted(np.random.default_rng(0).permutation(total)[:32])
    ids = np.stack([stream.ids(w * length, (w + 1) * length) for w in windows])
    return cut_scores.score_cuts(load_model(six_layers), 6, ids, cuts).cuts


def test_the_target_begins_without_the_cheapest_block_of_the_training_text(finished, six_layers):
    _, run = finished
    cuts = block_cuts(6, 3)
    scores = own_scores(run, six_layers, cuts)
    cheapest = min(zip(scores, cuts, strict=True), key=lambda pair: pair[0].kl)[1]
    assert layer_map(run, "target", 3) == cheapest
    stored = json.loads(run.selection.read_text("utf-8"))["result"]["cuts"]
    by_removed = {tuple(row["removed"]): row for row in stored}
    for cut, score in zip(cuts, scores, strict=True):
        row = by_removed[without(6, cut)]
        assert (row["kl"], row["loss"]) == (score.kl, score.loss)


def test_growth_gives_back_the_layer_that_lowers_the_divergence_most(finished, six_layers):
    _, run = finished
    first = layer_map(run, "target", 3)
    grown = [tuple(sorted((*first, layer))) for layer in without(6, first)]
    scores = own_scores(run, six_layers, grown)
    best = min(zip(scores, grown, strict=True), key=lambda pair: pair[0].kl)[1]
    assert layer_map(run, "target", 4) == best


def test_each_way_chooses_by_its_own_rule(finished, six_layers):
    _, run = finished
    table = json.loads(run.selection.read_text("utf-8"))["result"]
    chosen = {name: layer_map(run, name, 4) for name in WAYS}
    assert all(len(cut) == 4 and list(cut) == sorted(set(cut)) for cut in chosen.values())
    assert all({0, 5} <= set(chosen[name]) for name in ("block", "greedy"))
    for name, key in (("influence", "influence"), ("norm-ratio", "norm_ratio")):
        highest = sorted(range(6), key=lambda layer: -table[key][layer])[:4]
        assert chosen[name] == tuple(sorted(highest))
    angle = min((row for row in table["angles"] if row[1] == 2), key=lambda row: row[2])
    assert chosen["angular"] == without(6, range(angle[0], angle[0] + 2))
    kl = {tuple(row["removed"]): row["kl"] for row in table["cuts"]}
    first_gone = min(range(1, 5), key=lambda layer: kl[(layer,)])
    rest = [layer for layer in range(1, 5) if layer != first_gone]
    second_gone = min(rest, key=lambda layer: kl[tuple(sorted((first_gone, layer)))])
    assert chosen["greedy"] == without(6, (first_gone, second_gone))
    prefix, strided = (0, 1, 2, 3), (0, 2, 3, 5)
    candidates = {*chosen.values(), prefix, strided}
    assert kl[without(6, chosen["auto"])] == min(kl[without(6, cut)] for cut in candidates)


def test_run_json_says_what_each_model_inherited_and_what_the_cut_costs(finished):
    _, run = finished
    record = run.record()
    rows = {(row.name, row.layers): row for row in record.selection.inherited}
    assert set(rows) == {("target", 3)} | {(name, 4) for name in WAYS}
    for row in rows.values():
        assert tuple(row.kept) == layer_map(run, row.name, row.layers)
        assert row.kl >= 0 and row.start_val_loss > 0
    assert [row.layer for row in record.selection.layers] == list(range(6))
    entry = next(entry for entry in record.ledger if entry.item == "choice of layers")
    assert entry.flops > 0 and entry.seconds > 0 and entry.tokens == 0


def choice_in_ledger(run):
    return next(e for e in run.record().ledger if e.item == "choice of layers").flops


def test_a_plan_counts_the_scores_that_the_run_then_measures(six_layers, tiny_text, tmp_path):
    sections = {"inherit": {"layers": 3, "select": "block"}, "grow": {"add": 0}}
    sections |= {"train": {"tokens": 128}, "variants": {"target": {"start": "inherit"}}}
    recipe = recipe_of(six_layers, tiny_text, **sections)
    planned = plan_recipe(recipe, tmp_path / "planned")
    execute(as_file(recipe), tmp_path / "run")
    assert planned.selection_flops == choice_in_ledger(Run(tmp_path / "run"))
    assert planned.flops == planned.trainings[0].flops + planned.selection_flops


def test_a_plan_estimates_the_scores_of_searches(finished, tmp_path):
    recipe, run = finished
    planned = plan_recipe(recipe, tmp_path / "planned")
    assert planned.selection_flops == pytest.approx(choice_in_ledger(run), rel=0.1)


def test_a_target_beyond_the_prefix_is_verified_against_its_reference(finished, six_layers):
    _, run = finished
    assert verify(run.root, open_model(str(six_layers)), lambda finding: None).rows()


def test_a_finished_run_measures_nothing_again(finished, monkeypatch):
    recipe, run = finished
    before = run.selection.read_bytes()

    def refuse(*args, **kwargs):
        raise AssertionError("measured again")

    monkeypatch.setattr(layer_scores, "score_cuts", refuse)
    monkeypatch.setattr(layer_scores, "measure_distances", refuse)
    execute(as_file(recipe), run.root, must_match=False)
    assert run.selection.read_bytes() == before


@pytest.fixture
def until_it_trains(monkeypatch):
    """Carry out a recipe until its layers are chosen, by one of a whole run's many seconds."""

    def stop(*_):
        raise Interrupted("stopped before the first training; a test.")

    def execute_first(recipe, root):
        with monkeypatch.context() as patched:
            patched.setattr("inheritune.run.derive.train_variant", stop)
            with pytest.raises(Interrupted, match="before the first training"):
                execute(as_file(recipe), root, must_match=False)

    return execute_first


def test_the_validation_text_plays_no_part_in_the_choice(
    finished, monkeypatch, tmp_path, until_it_trains
):
    recipe, _ = finished
    seen = []
    real = layer_scores.score_cuts

    def watch(model, total, ids, *args, **kwargs):
        seen.append(ids)
        return real(model, total, ids, *args, **kwargs)

    monkeypatch.setattr(layer_scores, "score_cuts", watch)
    until_it_trains(recipe, tmp_path / "run")
    tokens = open_tokens(tmp_path / "run" / "tokens")
    train = tokens.train.ids(0, tokens.train.num_ids)
    length = seen[0].shape[1]
    windows = {train[i : i + length].tobytes() for i in range(0, len(train) - length + 1, length)}
    assert all(row.tobytes() in windows for ids in seen for row in ids)


def test_a_run_that_is_stopped_while_it_chooses_goes_on_and_chooses_the_same(
    finished, tmp_path, monkeypatch, until_it_trains
):
    recipe, run = finished
    real, calls = layer_scores.score_cuts, []

    def count(model, total, ids, cuts, *args, **kwargs):
        calls.extend(cuts)
        if len(calls) > 10:
            raise Interrupted("stopped by SIGTERM; a test.")
        return real(model, total, ids, cuts, *args, **kwargs)

    monkeypatch.setattr(layer_scores, "score_cuts", count)
    with pytest.raises(Interrupted):
        execute(as_file(recipe), tmp_path / "run", must_match=False)
    resumed = Run(tmp_path / "run")
    done = {
        tuple(row["removed"])
        for row in json.loads(resumed.selection.read_text("utf-8"))["result"]["cuts"]
    }
    assert done and not (resumed.root / "variants").exists()
    again = []

    def watch(model, total, ids, cuts, *args, **kwargs):
        again.extend(without(6, cut) for cut in cuts)
        return real(model, total, ids, cuts, *args, **kwargs)

    monkeypatch.setattr(layer_scores, "score_cuts", watch)
    until_it_trains(recipe, resumed.root)
    assert not done & set(again) and len(again) == len(set(again))
    one, other = (json.loads(r.selection.read_text("utf-8"))["result"] for r in (run, resumed))
    key = "removed"
    for table in (one, other):
        table["cuts"].sort(key=lambda row: row[key])
    assert one["cuts"] == other["cuts"] and one["influence"] == other["influence"]


@pytest.mark.parametrize(
    ("inherit", "grow", "said"),
    [
        ({"select": "block:7"}, {}, "inherit.select: cannot keep 7 layers"),
        ({"select": "block:1"}, {}, "block needs two layers"),
        ({"select": "0-2,5", "layers": 3}, {}, "'0-2,5' keeps 4 layers, not 3"),
        ({"select": "bloc:3"}, {}, "does not say which layers"),
        ({"select": "block", "layers": 7}, {}, "inherit.layers is 7, but"),
    ],
)
def test_a_selection_that_cannot_be_is_refused_at_plan_time(
    six_layers, tiny_text, tmp_path, inherit, grow, said
):
    recipe = recipe_of(six_layers, tiny_text, inherit=inherit, grow=grow)
    with pytest.raises(RecipeError, match=said):
        plan_recipe(recipe, tmp_path / "run")


def test_a_plan_says_that_the_run_chooses(six_layers, tiny_text, tmp_path):
    recipe = recipe_of(six_layers, tiny_text, inherit={"select": "block:4"}, grow={"add": 1})
    rounds = [t for t in plan_recipe(recipe, tmp_path / "run").trainings if t.round]
    assert [training.layers for training in rounds] == [4, 5]
    assert "by block (which ones, the run measures)" in rounds[0].made_of


def test_sizes_of_a_listed_target_are_nested_so_that_a_bisection_may_try_any(six_layers):
    grow = {"add": 1, "search": "bisect"}
    recipe = recipe_of(six_layers, "no text", inherit={"select": "0,3,5"}, grow=grow)
    reference = open_model(str(six_layers))
    growth = Growth.of(recipe, reference, 3, 6)
    assert growth.sizes == (3, 4, 5, 6)
    assert [growth.next_size({}), growth.next_size({3: False})] == [3, 5]
    ids = np.random.default_rng(0).integers(0, 256, (2, 16))
    scores = layer_scores.MeasuredScores(reference, lambda: Sequences(ids, 2, None, "a test"))
    facts = LayerFacts(6, scores=scores)
    maps = [inherited_layers(recipe, "inherit", facts, size) for size in growth.sizes]
    assert maps[0] == (0, 3, 5) and maps[3] == (0, 1, 2, 3, 4, 5)
    assert all(set(small) < set(large) for small, large in pairwise(maps))


def test_a_class_that_forbids_a_selection_is_refused_with_the_reason(tiny_text, tmp_path):
    tiny_models.save_gemma3n(tmp_path / "reference")
    recipe = recipe_of(tmp_path / "reference", tiny_text, inherit={"select": "0,2-3"})
    with pytest.raises(UnsupportedModelError, match="Keep first layers only"):
        plan_recipe(recipe, tmp_path / "run")
