"""Short trainings on training text decide which layers a target inherits."""

import json
import os
import signal
from collections import defaultdict
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_models
from tiny_recipe import as_file, fields_of, recipe_of

from inheritune.data.order import sample_ids
from inheritune.data.tokens import open_tokens
from inheritune.errors import DataError, DivergedError, Interrupted, RecipeError
from inheritune.planning.recipe_plan import plan_recipe
from inheritune.recipe.inherit import DEFAULT_CANDIDATES
from inheritune.recipe.load import parse_recipe
from inheritune.recipe.schema import Recipe
from inheritune.recipe.sections import yaml_value
from inheritune.reporting.page import write_report
from inheritune.run.execute import execute
from inheritune.run_directory import Run
from inheritune.steps import tournament as room
from inheritune.steps.tournament import stages_of
from inheritune.surgery.removal import without
from inheritune.surgery.selection import named_candidates
from inheritune.surgery.ways import LayerFacts, candidates

CANDIDATES = ["first", "0,2,5", "0,3,5"]
TOURNAMENT = {"tokens": 256, "by": "kl"}


@pytest.fixture(scope="module")
def six_layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("six") / "reference"
    return tiny_models.tiny_reference(path, num_hidden_layers=6)


def contest(model: Path, text: Path, **inherit: Any) -> Recipe:
    """One round of three layers that three candidates compete for; two stages."""
    asked = {"layers": 3, "select": "auto", "candidates": CANDIDATES, "tournament": TOURNAMENT}
    return recipe_of(model, text, inherit=asked | inherit, grow={"add": 0})


@pytest.fixture(scope="module")
def run(six_layers: Path, tiny_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A finished run; ``seen`` are the tokens of the tournament, read before they were removed."""
    root, seen = tmp_path_factory.mktemp("run") / "run", {}
    with pytest.MonkeyPatch.context() as patch:
        remove = room.shutil.rmtree

        def rmtree(path: Path, **options: Any) -> None:
            if Path(path).name == "tournament":
                tokens = open_tokens(Path(path) / "tokens")
                seen["train"] = tokens.train.samples(np.arange(tokens.train.num_samples(16)), 16)
                seen["val"] = tokens.val.samples(np.arange(tokens.val.num_samples(16)), 16)
            remove(path, **options)

        patch.setattr(room.shutil, "rmtree", rmtree)
        execute(as_file(contest(six_layers, tiny_text)), root)
    return root, seen


def test_the_better_half_of_each_stage_goes_on_until_one_is_left(run: Any) -> None:
    record = Run(run[0]).record()
    assert record.tournament is not None
    first, last = record.tournament.stages
    assert (first.tokens, last.tokens) == (128, 256)
    assert sorted(str(row.select) for row in first.candidates) == sorted(CANDIDATES)
    for stage, left in ((first, 2), (last, 1)):
        losses = [row.kl for row in stage.candidates]
        assert losses == sorted(losses)
        assert [row.goes_on for row in stage.candidates] == [
            place < left for place in range(len(losses))
        ]
    survivors = {row.select for row in first.candidates[:2]}
    assert {row.select for row in last.candidates} == survivors
    assert record.tournament.winner == last.candidates[0].select


def test_the_target_inherits_the_layers_of_the_winner(run: Any) -> None:
    root = run[0]
    record = Run(root).record()
    layer_map = json.loads((root / "target" / "inherit.json").read_text())["layer_map"]
    assert record.tournament is not None and layer_map == record.tournament.kept
    assert any("chosen by a tournament on training text" in note for note in record.notes)
    assert not (root / "tournament").exists()


def test_no_candidate_sees_the_validation_text_or_what_it_is_compared_on(run: Any) -> None:
    root, seen = run
    record, stream = Run(root).record(), open_tokens(Run(root).tokens).train
    total, seed = stream.num_samples(16), record.recipe_section("train")["seed"]
    held_out = len(seen["val"])
    places = {"train": (0, 256 // 16), "val": (total - held_out, total)}
    chosen = {name: sample_ids(*ends, total, seed, 0) for name, ends in places.items()}
    for name, windows in chosen.items():
        assert np.array_equal(seen[name][:, :-1], stream.samples(windows, 16)[:, :-1])
    assert not set(chosen["train"]) & set(chosen["val"])
    assert record.tournament is not None
    assert record.tournament.windows == held_out == min(32, total // 4)


def test_its_cost_is_in_the_ledger_and_its_table_on_the_page(run: Any) -> None:
    root = run[0]
    entries = {entry.item: entry for entry in Run(root).record().ledger}
    first = entries["tournament, stage 1: 3 candidates of 128 tokens"]
    last = entries["tournament, stage 2: 2 candidates of 256 tokens"]
    assert (first.tokens, last.tokens) == (3 * 128, 2 * 256)
    assert first.flops and last.flops and first.device_hours is not None
    page = write_report(root).read_text()
    assert "Choice of layers" in page and "that no candidate was trained on" in page


def test_a_plan_counts_every_stage(run: Any, six_layers: Path, tiny_text: Path) -> None:
    plan = plan_recipe(contest(six_layers, tiny_text), run[0])
    stages = [training for training in plan.trainings if training.candidates]
    assert [(t.name, t.tokens, t.candidates) for t in stages] == [
        ("tournament, stage 1", 3 * 128, 3),
        ("tournament, stage 2", 2 * 256, 2),
    ]
    assert all(t.made_of.endswith("tokens each") for t in stages)
    alone = next(t for t in plan.trainings if t.round == 1)
    assert stages[1].flops == pytest.approx(2 * 256 / alone.tokens * alone.flops)


def test_a_stopped_tournament_goes_on_and_ends_the_same(
    run: Any, six_layers: Path, tiny_text: Path, tmp_path: Path
) -> None:
    recipe, root = contest(six_layers, tiny_text), tmp_path / "run"
    trained: list[str] = []

    def stop(event: Any) -> None:
        if event.message.startswith("at its end"):
            trained.append(event.task)
            if len(trained) == 2:
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        execute(as_file(recipe), root, stop)
    again: list[str] = []
    execute(
        as_file(recipe),
        root,
        lambda e: again.append(e.task) if e.message.startswith("at its end") else None,
    )
    assert len([task for task in again if task.startswith("candidate")]) == 5 - 2
    before, now = Run(run[0]).record().tournament, Run(root).record().tournament
    assert before is not None and now is not None
    assert [[row.kl for row in stage.candidates] for stage in now.stages] == [
        [row.kl for row in stage.candidates] for stage in before.stages
    ]


def test_a_repaired_distilled_candidate_is_made_as_the_target(
    six_layers: Path, tiny_text: Path, tmp_path: Path
) -> None:
    fields = {
        "repair": "sequential",
        "repair_tokens": 64,
        "candidates": ["first", "0,2,5"],
        "tournament": {"tokens": 128, "by": "val_loss"},
    }
    recipe = contest(six_layers, tiny_text, **fields)
    target = {"start": "inherit", "distill": {"top_k": 4}}
    recipe = Recipe.model_validate(recipe.resolved() | {"variants": {"inherit": target}})
    root = tmp_path / "run"
    execute(as_file(recipe), root)
    record = Run(root).record()
    assert record.tournament is not None
    (stage,) = record.tournament.stages
    assert [row.kl for row in stage.candidates] == [None, None]
    losses = [row.val_loss for row in stage.candidates]
    assert losses == sorted(losses)
    assert record.rounds[0].repair and record.rounds[0].distill
    # The winner's cut was repaired for the tournament; its val_loss was measured on other text.
    winner = "-".join(map(str, record.tournament.kept))
    shared = record.rounds[0].repair["shared"]
    assert {part: row["made_for"] for part, row in shared.items()} == {
        "repair": f"tournament/{winner}"
    }
    assert shared["repair"]["flops"] > 0 and record.rounds[0].repair["flops"] > 0
    plan = plan_recipe(recipe, tmp_path / "planned")
    target = next(training for training in plan.trainings if training.round == 1)
    assert target.repair_flops == 0 and target.shared_repair_flops


def test_a_candidate_that_diverges_loses_and_one_with_an_infinite_divergence_too(
    six_layers: Path, tiny_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three, one diverges in training, one has no finite KL: there is no second stage."""
    train, compare = room.run_training, room._Contest._compared
    said: list[str] = []

    def diverging(task: Any, windows: Any = None) -> Any:
        if task.spec.variant == "candidate 0,2,5":
            raise DivergedError("loss nan at step 1.")
        return train(task, windows)

    def compared(contest: Any, row: Any, task: Any) -> Any:
        if task.spec.variant == "candidate 0,3,5":
            patch = pytest.MonkeyPatch()
            with patch.context() as inner:
                inner.setattr(
                    "inheritune.evaluation.fidelity.measure_fidelity",
                    lambda *_: SimpleNamespace(kl=float("nan"), tokens=1),
                )
                return compare(contest, row, task)
        return compare(contest, row, task)

    monkeypatch.setattr(room, "run_training", diverging)
    monkeypatch.setattr(room._Contest, "_compared", compared)
    root = tmp_path / "run"
    execute(as_file(contest(six_layers, tiny_text)), root, lambda e: said.append(e.message))
    tournament = Run(root).record().tournament
    assert tournament is not None and tournament.winner == "first"
    (stage,) = tournament.stages
    best, *lost = stage.candidates
    assert (best.select, best.goes_on) == ("first", True)
    assert [(row.val_loss, row.goes_on, row.tokens) for row in lost] == [(None, False, 128)] * 2
    assert all(row.flops and row.flops > 0 for row in lost)
    assert "it loses. loss nan at step 1." in said
    assert "no, it diverged" in write_report(root).read_text()


def test_a_tournament_in_which_all_diverge_ends_the_run_with_the_way_out(
    six_layers: Path, tiny_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverging(task: Any, windows: Any = None) -> Any:
        raise DivergedError("loss nan at step 1.")

    monkeypatch.setattr(room, "run_training", diverging)
    with pytest.raises(DivergedError, match="all 3 candidates of the tournament diverged") as error:
        execute(as_file(contest(six_layers, tiny_text)), tmp_path / "run")
    assert "learning_rate" in str(error.value.hint)


def test_a_candidate_is_not_repaired_on_what_it_is_compared_on(
    six_layers: Path, tiny_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The repair asks for all of the training text, of which 32 windows are held out."""
    fitted: list[tuple[int, int]] = []
    write = room.write_start

    def written(task: Any, model: Any) -> None:
        if task.spec.variant.startswith("candidate"):
            fitted.append((task.spec.repair_tokens, task.tokens.train.num_samples(16)))
        write(task, model)

    monkeypatch.setattr(room, "write_start", written)
    root = tmp_path / "first"
    execute(as_file(contest(six_layers, tiny_text)), root)
    available = open_tokens(Run(root).tokens).train.num_samples(16)
    fitted.clear()
    fields = {
        "repair": "scale",
        "repair_tokens": available * 16,
        "candidates": ["first", "0,2,5"],
        "tournament": {"tokens": 128, "by": "val_loss"},
    }
    execute(as_file(contest(six_layers, tiny_text, **fields)), tmp_path / "run")
    held_out = Run(tmp_path / "run").record().tournament.windows
    assert fitted == [((available - held_out) * 16, available)] * 2


# --- refusals ---


@pytest.mark.parametrize(
    ("inherit", "words"),
    [
        ({"candidates": ["first"]}, ["inherit.candidates", "at least 2"]),
        ({"candidates": ["first", "first"]}, ["candidates name first twice"]),
        ({"select": "block"}, ["candidates is for select: auto, and select is block"]),
        ({"tournament": {"tokens": 256, "by": "luck"}}, ["inherit.tournament.by", "kl"]),
        ({"tournament": {"by": "kl"}}, ["inherit.tournament.tokens"]),
        ({"tournament": {"tokens": 255}}, ["first of 2 stages", "give 256 or more"]),
    ],
)
def test_a_tournament_that_cannot_be_is_refused_when_the_recipe_is_read(
    inherit: dict[str, Any], words: list[str]
) -> None:
    asked = {"layers": 3, "select": "auto", "candidates": CANDIDATES, "tournament": TOURNAMENT}
    fields = fields_of("model", "text", inherit=asked | inherit)
    text = "\n".join(f"{key}: {yaml_value(value)}" for key, value in fields.items())
    with pytest.raises(RecipeError) as error:
        parse_recipe(text, Path("recipe.yaml"))
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("candidates", "words"),
    [
        (["first", "0,2"], ["inherit.candidates: '0,2' keeps 2 layers, not 3"]),
        (["first", "block:3"], ["'block:3' states a number", "Write block"]),
        (["first", "lazy"], ["lazy cannot be a candidate", "block"]),
        (["first", "auto"], ["auto cannot be a candidate"]),
        (["first", "every"], ["every cannot be a candidate"]),
        (["first", "best ones"], ["'best ones' does not say which layers"]),
        (["first", "0,2,9"], ["no layer 9"]),
    ],
)
def test_a_candidate_that_cannot_be_is_refused_by_plan_with_the_way_out(
    candidates: list[str], words: list[str], six_layers: Path, tiny_text: Path, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError) as error:
        plan_recipe(contest(six_layers, tiny_text, candidates=candidates), tmp_path / "run")
    for word in words:
        assert word in str(error.value)


def test_a_text_too_short_for_a_tournament_is_refused_before_it(
    six_layers: Path, tiny_text: Path, tmp_path: Path
) -> None:
    recipe = contest(six_layers, tiny_text, tournament={"tokens": 1_000_000})
    with pytest.raises(DataError, match=r"inherit\.tournament trains on 1,000,000 tokens") as error:
        execute(as_file(recipe), tmp_path / "run")
    assert "data.allow_repeat" in str(error.value.hint)
    assert not (tmp_path / "run" / "variants").exists()


def test_candidates_that_keep_the_same_layers_hold_no_tournament(
    six_layers: Path, tiny_text: Path, tmp_path: Path
) -> None:
    messages: list[str] = []
    recipe = contest(six_layers, tiny_text, candidates=["first", "0-2"])
    execute(as_file(recipe), tmp_path / "run", lambda event: messages.append(event.message))
    assert "no tournament: all candidates keep the same layers" in messages
    assert Run(tmp_path / "run").record().tournament is None


# --- stages ---


@pytest.mark.parametrize(
    ("number", "stages"),
    [
        (2, [(2, 1024)]),
        (3, [(3, 512), (2, 1024)]),
        (4, [(4, 512), (2, 1024)]),
        (7, [(7, 256), (4, 512), (2, 1024)]),
    ],
)
def test_stages_halve_the_candidates_and_double_their_tokens(
    number: int, stages: list[tuple[int, int]]
) -> None:
    named = [f"0,{n},5" for n in range(1, 4)] + ["first", "block", "greedy", "strided"]
    recipe = contest(Path("model"), Path("text"), candidates=named, tournament={"tokens": 1024})
    assert list(stages_of(recipe, number)) == stages
    assert recipe.inherit.tournament_stages == 3


def test_without_a_tournament_auto_compares_the_candidates_by_their_scores(
    six_layers: Path, tiny_text: Path, tmp_path: Path
) -> None:
    recipe = contest(six_layers, tiny_text, candidates=["0,1,5", "0,4,5"], tournament=None)
    execute(as_file(recipe), tmp_path / "run")
    selection = json.loads((tmp_path / "run" / "selection.json").read_text())["result"]["cuts"]
    kl = {without(6, cut["removed"]): cut["kl"] for cut in selection}
    target = json.loads((tmp_path / "run" / "target" / "inherit.json").read_text())["layer_map"]
    assert {(0, 1, 5), (0, 4, 5)} <= set(kl)
    assert tuple(target) == min([(0, 1, 5), (0, 4, 5)], key=lambda cut: kl[cut])


def test_at_a_size_that_no_named_candidate_has_the_default_ones_compete() -> None:
    named = {"0-2": (0, 1, 2), "0,2,5": (0, 2, 5)}
    scores: Any = SimpleNamespace(
        influence=[1.0] * 6,
        norm_ratio=[1.0] * 6,
        angles=defaultdict(float),
        divergences=lambda cuts: [0.0] * len(cuts),
        in_memory=nullcontext,
    )
    facts = LayerFacts(6, scores=scores, candidates=named)
    assert candidates(facts, 3) == named
    assert candidates(facts, 2).keys() == {*DEFAULT_CANDIDATES}


def test_the_folder_of_a_candidate_of_many_layers_has_a_name_that_a_file_system_takes() -> None:
    assert room.folder_name((0, 2, 5)) == "0-2-5"
    many, others = (room.folder_name(tuple(range(start, start + 100))) for start in (0, 1))
    assert many != others and len(many) < 255


def test_a_list_competes_at_its_own_size_only() -> None:
    assert named_candidates(["first", "0,2,5"], 6, 3) == {"first": None, "0,2,5": (0, 2, 5)}
