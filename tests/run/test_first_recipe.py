import os
import signal
from pathlib import Path
from typing import Any

import pytest
import tiny_models

import inheritune as it
from inheritune.errors import Interrupted, RecipeError
from inheritune.model_files.directory import open_model
from inheritune.run.first_request import FirstRun, continuing
from inheritune.steps.method import method_of
from inheritune.system.progress import Progress

SECTIONS: dict[str, Any] = {"analyze": None, "evaluate": {"gains": False}, "method": "paper"}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # 1 ms per token of the first round: 60 s are then 20,000 tokens, and the like.
    monkeypatch.setattr("inheritune.run.first_recipe.seconds_per_token", lambda *args: 1e-3)


def first(model: Path, text: Path, **options: Any) -> it.RecipeFile:
    return it.recipe_for(model, text, progress=False, **(SECTIONS | options))


def test_minutes_become_tokens_that_the_recipe_records(
    tiny_reference: Path, tiny_text: Path
) -> None:
    messages: list[str] = []
    file = it.recipe_for(
        tiny_reference,
        tiny_text,
        minutes=1,
        layers=4,
        method="paper",
        progress=lambda event: messages.append(event.message),
        train={"seq_len": 16},
    )
    # One round with all 4 layers, and the reference: 17 windows of 16 tokens, (7 + 1) / 3 times
    # 1 ms, take 0.7 s; what is left of 60 s is 59,274 tokens.
    assert "about 17 windows" in file.text
    assert file.recipe.train.tokens == 59_000
    assert "per round: 1 minute at 1,000 tokens/s, measured" in file.text
    assert any("59K tokens per round, 1 round at most." in message for message in messages)
    assert file.recipe.data.allow_repeat  # the text is shorter
    assert not Path("tiny-reference.yaml").exists()


def test_a_time_for_two_rounds_is_shared_by_their_cost(
    tiny_reference: Path, tiny_text: Path
) -> None:
    one = first(tiny_reference, tiny_text, minutes=10, layers=2).recipe.train.tokens
    two = first(tiny_reference, tiny_text, minutes=10).recipe.train.tokens  # 2 layers, then 4
    assert one / 3 < two < one / 2


@pytest.mark.parametrize(
    ("has_gpus", "factor", "words"),
    [
        (True, 2, "2 GPUs are taken to be 2 times as fast"),
        (False, 1, "2 processes share the cores"),
    ],
)
def test_the_speed_of_several_processes_is_that_of_one_and_said_to_be(
    has_gpus: bool,
    factor: int,
    words: str,
    tiny_reference: Path,
    tiny_text: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: has_gpus)
    options = {"minutes": 10, "layers": 2, "method": "paper", "train": {"seq_len": 16}}
    messages: list[str] = []
    files = [
        it.recipe_for(
            tiny_reference,
            tiny_text,
            processes=processes,
            progress=lambda event: messages.append(event.message),
            **options,
        )
        for processes in (1, 2)
    ]
    one, two = (file.recipe.train.tokens for file in files)
    assert two == pytest.approx(factor * one, rel=0.1)  # validation also counts
    assert "measured in one process" in files[1].text
    assert "measured in one process" not in files[0].text
    assert sum(words in message for message in messages) == 1


def test_a_stopped_run_continues_by_the_same_call_to_the_bit(
    tiny_reference: Path, tiny_text: Path
) -> None:
    sections = {"train": {"seq_len": 16}, "minutes": 0.1, "layers": 2}
    whole = it.derive(first(tiny_reference, tiny_text, **sections), runs="whole", progress=False)

    def stop(event: Progress) -> None:
        if "loss" in event.facts and event.done > event.total / 2:
            os.kill(os.getpid(), signal.SIGINT)

    file = first(tiny_reference, tiny_text, out=".", **sections)
    with pytest.raises(Interrupted):
        it.derive(file, progress=stop)
    again = first(tiny_reference, tiny_text, out=".", **sections)
    assert (again.text, again.recipe) == (file.text, file.recipe)
    result = it.derive(again, progress=False)
    assert result.val_loss == whole.val_loss
    weights = [run.target / "model.safetensors" for run in (result, whole)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert [training.restarts for training in result.record.rounds] == [1]


def test_what_is_given_replaces_a_rule_and_its_comment(
    tiny_reference: Path, tiny_text: Path
) -> None:
    file = first(
        tiny_reference,
        tiny_text,
        tokens="20K",
        sets="inherit.layers=3",
        train={"learning_rate": 5e-4, "micro_batch": 3},
        variants={"inherit": {"start": "inherit"}, "scratch": {"start": "fresh"}},
    )
    recipe = file.recipe
    assert (recipe.inherit.layers, [*recipe.variants]) == (3, ["inherit", "scratch"])
    assert (recipe.train.learning_rate, recipe.train.min_learning_rate) == (5e-4, 5e-5)
    assert recipe.train.batch_tokens == 3 * recipe.train.seq_len
    assert "half, as in the paper" not in file.text


def test_a_long_text_is_prepared_as_far_as_it_is_trained_on(
    tiny_reference: Path, tiny_text: Path
) -> None:
    data = first(tiny_reference, tiny_text, tokens=640, train={"seq_len": 16}).recipe.data
    assert (data.tokens, data.allow_repeat) == (640 + 16, False)


def test_several_texts_and_an_opened_model_are_taken(tiny_reference: Path, tiny_text: Path) -> None:
    file = first(open_model(str(tiny_reference)), [tiny_text, str(tiny_text)], tokens="1K")
    assert file.recipe.data.source == [str(tiny_text)] * 2
    assert file.recipe.reference.model == str(tiny_reference)


def test_the_command_of_a_request_is_one_line_that_a_shell_reads() -> None:
    request = FirstRun(
        "m",
        ("my text.txt", "a\nb"),
        layers="4",
        minutes=2.50,
        name="x",
        method="paper",
        sets=("a=1",),
    )
    assert request.command == (
        "inheritune run m --text 'my text.txt' --text 'a\\nb' --layers 4 --minutes 2.5 --name x "
        "--method paper --set a=1"
    )


def test_the_best_method_is_filled_in_with_what_the_text_allows(
    tiny_reference: Path, tiny_text: Path
) -> None:
    file = first(tiny_reference, tiny_text, tokens="640", train={"seq_len": 16}, method="best")
    inherit = file.recipe.inherit
    assert (inherit.layers, inherit.select, inherit.repair) == (None, "auto", "sequential")
    assert inherit.repair_tokens == 640  # of the 656 that are prepared, whole windows
    distill = file.recipe.variants["inherit"].distill
    assert distill is not None and distill.hidden is not None
    assert (distill.alpha, distill.hidden.loss, distill.hidden.weight) == (0.1, "cosine", 2.0)
    assert "\n# Method: best\n" in file.text
    paper = first(tiny_reference, tiny_text, tokens="640", train={"seq_len": 16}).recipe
    assert paper.variants["inherit"].distill is None


def test_the_time_of_a_distillation_includes_the_reference_beside_it(
    tiny_reference: Path, tiny_text: Path
) -> None:
    paper, best = (
        first(tiny_reference, tiny_text, minutes=10, layers=4, method=method).recipe.train.tokens
        for method in ("paper", "best")
    )
    # The target has all layers: with a forward pass beside it, a token costs a third more.
    assert best == pytest.approx(paper / (4 / 3), rel=0.02)


@pytest.mark.parametrize(
    ("family", "layers", "made"),
    [
        ("olmo3", 2, ("auto", "none")),  # a norm behind the MLP: no repair can be folded in
        ("llama", 1, ("first", "none")),  # one layer leaves nothing to choose
    ],
)
def test_the_best_method_leaves_out_what_a_reference_forbids(
    family: str, layers: int, made: tuple[str, str], tmp_path: Path, tiny_text: Path
) -> None:
    model = tiny_models.tiny_reference(tmp_path / family, family)
    messages: list[str] = []
    file = it.recipe_for(
        model,
        tiny_text,
        layers=layers,
        tokens="640",
        progress=lambda event: messages.append(event.message),
        train={"seq_len": 16},
    )
    inherit = file.recipe.inherit
    assert (inherit.select, inherit.repair) == made
    assert file.recipe.variants["inherit"].distill is not None
    assert "\n# Method: best, without a repair" in file.text
    assert any("repair sequential: not here. " in message for message in messages)
    assert method_of(file.recipe) == "best"


def test_what_an_override_forbids_is_left_out_of_the_best_method(
    tiny_reference: Path, tiny_text: Path
) -> None:
    messages: list[str] = []
    file = it.recipe_for(
        tiny_reference,
        tiny_text,
        tokens="640",
        progress=lambda event: messages.append(event.message),
        train={"seq_len": 16},
        grow={"weights": "keep"},
    )
    inherit = file.recipe.inherit
    assert file.recipe.grow.weights == "keep" and inherit.repair == "none"
    assert any("repair sequential: not here. " in message for message in messages)
    taken = f"taken: {inherit.select} layers, repair none. For the paper's own method: "
    assert f"{taken}--method paper" in messages
    messages.clear()
    with pytest.raises(RecipeError, match="upwards"):
        it.recipe_for(
            tiny_reference,
            tiny_text,
            progress=lambda event: messages.append(event.message),
            grow={"weights": "upwards"},
        )
    assert not any("not here" in message for message in messages)


@pytest.mark.parametrize(
    ("change", "method"),
    [
        ({}, "paper"),
        ({"inherit": {"select": "first:2"}}, "paper"),
        ({"inherit": {"select": "block:2"}}, "own"),
        ({"inherit": {"select": "0-1"}}, "own"),
        ({"inherit": {"repair": "linear", "repair_tokens": 64}}, "own"),
        ({"variants": {"inherit": {"start": "inherit", "distill": {}}}}, "own"),
        ({"train": {"seq_len": 16, "only": ["head"]}}, "own"),
    ],
)
def test_a_recipe_follows_a_preset_or_is_its_own(
    change: dict[str, Any], method: str, tiny_reference: Path, tiny_text: Path
) -> None:
    sections = {"train": {"seq_len": 16}} | change
    assert method_of(first(tiny_reference, tiny_text, tokens="640", **sections).recipe) == method


def test_a_file_that_was_not_written_by_a_command_is_left_alone(
    tiny_reference: Path, tiny_text: Path
) -> None:
    path = Path("tiny-reference.yaml")
    path.write_text("reference: {model: m}\ndata: {source: stdlib}\ntrain: {tokens: 1}\n")
    before = path.read_bytes()
    with pytest.raises(RecipeError, match="not made by this command"):
        first(tiny_reference, tiny_text, tokens="1K", out=".")
    assert path.read_bytes() == before


def test_the_way_to_continue_names_the_runs_that_lie_elsewhere(tmp_path: Path) -> None:
    for runs, end in ((Path("runs"), "recipe.yaml"), (tmp_path, f"--runs {tmp_path}")):
        assert continuing(runs / "mine/recipe.yaml", runs).endswith(end)
