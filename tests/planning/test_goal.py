"""Numbers of layers that a goal leads to."""

import pytest
import tiny_models
from typer.testing import CliRunner

from inheritune import api
from inheritune.cli import plan_answers
from inheritune.cli.app import app
from inheritune.errors import RecipeError
from inheritune.model_files.directory import open_model
from inheritune.planning.candidates import Budget, every_candidate
from inheritune.recipe.values import amount_of_bytes


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return tiny_models.save("llama", tmp_path_factory.mktemp("goal") / "reference")


def plan(reference, **goal):
    return api.plan(reference, progress=False, **goal)


def test_the_most_layers_within_the_parameters_are_chosen(reference):
    *cuts, whole = every_candidate(open_model(str(reference)), Budget()).candidates
    for cut in cuts:
        assert plan(reference, parameters=cut.counts.params).kept == tuple(range(cut.layers))
    fewer = plan(reference, parameters=whole.counts.params - 1)
    assert fewer.kept == tuple(range(whole.layers - 1))


def test_memory_counts_the_cache_of_seq_len_tokens(reference):
    cut = every_candidate(open_model(str(reference)), Budget()).candidates[1]
    for tokens in (1, 1000):
        needed = cut.counts.bytes + tokens * cut.cache.bytes_per_token
        assert cut.bytes_in_use(tokens) == needed
        assert plan(reference, memory=needed, seq_len=tokens).candidate.layers == 2
        assert plan(reference, memory=needed - 1, seq_len=tokens).candidate.layers == 1


def test_a_speed_is_the_ratio_of_flops(reference):
    *cuts, whole = every_candidate(open_model(str(reference)), Budget()).candidates
    for cut in cuts:
        ratio = whole.counts.flops_per_token / cut.counts.flops_per_token
        speed = f"{int(ratio * 10**6) / 10**6:.6f}x"
        assert plan(reference, speed=speed).candidate.layers == cut.layers


@pytest.mark.parametrize(
    ("goal", "words"),
    [
        ({"parameters": 10}, "no safe cut"),
        ({"parameters": "5B"}, "nothing has to be left out"),
        ({"memory": "1KB"}, "1 layer of"),
        ({"memory": "8XB"}, "500MB, 8GB or 8GiB"),
        ({"memory": "0GB"}, "is not an amount"),
        ({"speed": 1}, "no factor above 1"),
        ({"speed": "fast"}, "like 1.3x"),
        ({"speed": 10**7}, "no factor above 1"),
        ({"speed": 2, "memory": "1GB"}, "2 goals"),
        ({"speed": 2, "layers": 1}, "Give one of the two"),
        ({"rate": 2.5}, "--rate is of a device"),
        ({"devices": 8}, "--devices is of a device"),
        ({"mfu": 0.5}, "--mfu is of a device"),
    ],
)
def test_a_goal_that_is_none_or_out_of_reach_is_refused(reference, goal, words):
    with pytest.raises(RecipeError) as error:
        plan(reference, **goal)
    assert words in f"{error.value} {error.value.hint}"


@pytest.mark.parametrize(
    ("text", "size"), [("8GB", 8 * 10**9), ("8gib", 8 * 2**30), ("1.5MB", 1_500_000), ("12", 12)]
)
def test_bytes_are_read_with_decimal_and_binary_units(text, size):
    assert amount_of_bytes(text, "--memory") == size


def test_the_first_lines_answer_and_fit_into_eighty_columns(reference, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    options = ["--tokens", "1B", "--device", "h100", "--rate", "2"]
    for arguments in ([], ["2"], ["--speed", "1.2x"]):
        done = CliRunner().invoke(app, ["plan", str(reference), *options, *arguments])
        lines = done.stdout.splitlines()
        assert [line.split(":")[0] for line in lines[:4]] == ["what", "time", "cost", "fits"]
        assert max(map(len, lines)) <= 80
        assert "1B tokens on NVIDIA H100 SXM" in lines[1] and lines[3].endswith(", of 80 GB: yes")
        assert not any(line.startswith("A cut is safe") for line in lines)
    explained = CliRunner().invoke(app, ["plan", str(reference), "--all"])
    assert "A cut is safe" in explained.stdout


def test_no_line_wraps_and_each_unsafe_cut_has_its_reason(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    model = tmp_path / "ten"
    tiny_models.build("smollm3", num_hidden_layers=10).save_pretrained(model)  # a pattern of 4
    options = ["--tokens", "1000B", "--device", "h100", "--rate", "100000000"]
    for arguments in ([], options, ["5"], [*options, "--all"]):
        lines = CliRunner().invoke(app, ["plan", str(model), *arguments]).stdout.splitlines()
        table = [line for line in lines if line[:6].strip().isdecimal()]
        assert len(table) == (1 if arguments == ["5"] else 10)
        assert max(map(len, lines[: lines.index(table[-1]) + 1])) <= 80
        assert "5 layers: the last pattern has 1 of its 4 layers." in lines


def test_a_training_that_leaves_little_for_activations_is_called_tight(reference, monkeypatch):
    need = 16 * plan(reference, layers=2).candidate.counts.params
    for memory, verdict in ((need - 1, "no"), (need, "tight"), (need * 5 // 4 + 1, "yes")):
        monkeypatch.setattr(plan_answers, "training_memory", lambda here=memory: (here, False))
        done = CliRunner().invoke(app, ["plan", str(reference), "2"])
        assert done.stdout.splitlines()[3].endswith(f" free: {verdict}")


@pytest.mark.parametrize(
    ("memory", "words"),
    [
        ((10**9, False), ", of 1 GB free: yes"),
        ((10, True), ", of the GPU's 10 bytes: no"),
        ((None, False), " + activations to train"),
    ],
)
@pytest.mark.parametrize("device", [[], ["--device", "cpu"]])
def test_without_a_named_gpu_the_memory_is_that_of_this_machine(
    reference, monkeypatch, memory, words, device
):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(plan_answers, "training_memory", lambda: memory)
    done = CliRunner().invoke(app, ["plan", str(reference), *device])
    assert done.stdout.splitlines()[3].endswith(words)
