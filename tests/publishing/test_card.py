"""The card of a trained target: read back equal, complete, and nothing in it is markup."""

import json

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData, metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results

from inheritune.model_files.card import split_front_matter
from inheritune.publishing.card import card_text, with_path, write_card
from inheritune.reporting.embed import presentable
from inheritune.run_record.record import RunRecord

RECORD = {
    "name": "small",
    "status": "done",
    "reference": {
        "model": "org/large", "layers": 8, "revision": "1" * 40, "digest": "ab",
        "trained_tokens": 14_000_000, "card": {"license": "apache-2.0", "language": ["en", "de"]},
    },
    "recipe": {
        "data": {"source": ["org/text", "notes/a.txt"]},
        "train": {"tokens": 32_000, "learning_rate": 0.002},
        "variants": {"inherit": {"start": "inherit"}},
    },
    "tokens": {"source": "org/text", "commits": ["2" * 40], "fingerprint": "fp"},
    "rounds": [{"name": "inherit", "layers": 4, "tokens": 32_000, "val_loss": 3.25}],
    "result": {
        "outcome": "matched", "layers": 4, "reference_layers": 8, "benchmark": 3.3,
        "val_loss": 3.25, "val_loss_se": 0.0125, "tokens": 64_000, "flops": 1e12, "seconds": 7300,
        "price": {"paid": 12.5, "currency": "EUR"},
    },
    "machine": {"processor": "A processor"},
    "versions": {"torch": "2.13"},
    "evaluation": {
        "models": [
            {"name": "reference", "role": "reference", "scores": [
                {"task": "piqa", "shots": 0, "metrics": {"acc": {"value": 0.66, "se": 0.011}}}]},
            {"name": "inherit", "role": "target", "scores": [
                {"task": "piqa", "shots": 0, "metrics": {"acc": {"value": 0.61, "se": 0.011}}}]},
        ],
    },
}  # fmt: skip
INHERITED = {"layer_map": [0, 1, 2, 5], "reference": {"name": "org/large", "revision": "1" * 40}}


def made(**changes):
    return split_front_matter(card_text(typed(RECORD | changes), INHERITED, ["val-loss.png"]))


def typed(content):
    return RunRecord.model_validate(presentable(content))


def test_the_metadata_is_what_the_hub_reads():
    fields, _ = made()
    index = fields.pop("model-index")
    assert fields == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": "apache-2.0",
        "language": ["en", "de"],
        "base_model": "org/large",
        "base_model_relation": "finetune",
        "datasets": ["org/text"],
        "tags": ["inheritune", "arxiv:2404.08634"],
    }
    name, results = model_index_to_eval_results(index)
    found = {r.metric_type: (r.dataset_name, r.metric_value, r.metric_args) for r in results}
    assert name == "small" and found == {
        "val_loss": ("held-out text of the run", 3.25, {"standard_error": 0.0125}),
        "acc": ("piqa", 0.61, {"standard_error": 0.011, "num_fewshot": 0}),
    }
    assert ModelCardData(**fields).to_dict()["license"] == "apache-2.0"


def test_the_hubs_own_checks_that_need_no_network_accept_the_card(tmp_path):
    """`ModelCard.validate` asks huggingface.co, so it is not called here."""
    path = tmp_path / "README.md"
    path.write_text(card_text(typed(RECORD), INHERITED, []))
    card = ModelCard.load(path, ignore_metadata_errors=False)
    assert [result.dataset_type for result in card.data.eval_results] == ["held-out", "piqa"]
    assert card.data.base_model == "org/large" and card.data.datasets == ["org/text"]
    fields = metadata_load(path)
    written = {key: value for key, value in card.data.to_dict().items() if key != "model_name"}
    assert yaml.safe_load(card.data.to_yaml()) == written == fields
    fields["model-index"][0]["results"][0].pop("dataset")
    with pytest.raises(ValueError, match="Invalid `model_index`"):
        ModelCard(f"---\n{yaml.safe_dump(fields)}---\n", ignore_metadata_errors=False)


def test_the_text_says_where_the_model_comes_from_and_how_it_is_loaded():
    _, body = made()
    for said in (
        "# 4 of 8 layers of `org/large`", "![val loss](figures/val-loss.png)", "3 ← 5", "1" * 40,
        "AutoModelForCausalLM.from_pretrained(path)", '"learning_rate": 0.002', "| 64K |",
        "| A processor |", "| 12.50 EUR |", "| 2 h 2 min |", "2222222222",
        "| `piqa` | `acc` | 0.6100 | 0.0110 | 0 |",
        "## Limits",
    ):  # fmt: skip
        assert said in body, said


def test_the_card_begins_with_facts_and_ends_with_what_few_readers_open():
    config = {"max_position_embeddings": 256, "n_layer": 4}
    gains = {"device": "cpu", "models": [
        {"name": "reference", "decode": {"median": 20.0}},
        {"name": "target", "decode": {"median": 30.0}},
    ]}  # fmt: skip
    rounds = [RECORD["rounds"][0] | {
        "params": 2_000_000, "bytes": 4_000_000, "dtype": "BF16",
        "difference": -0.05, "difference_se": 0.004,
    }]  # fmt: skip
    samples = [{"model": "inherit", "prompt": "Once", "text": " upon ``` a time"}]
    changes = {"gains": gains, "rounds": rounds, "samples": samples}
    record = typed(RECORD | changes)
    _, body = split_front_matter(card_text(record, INHERITED, ["val-loss.png"], ".", config))
    open_part, *details = body.split("<details>")
    for row in (
        "| base model | `org/large` |", "| layers | 4 of 8 |", "| parameters | 2M |",
        "| weights | 4 MB, BF16 |", "| context | 256 tokens |",
        "| speed | 1.50 × the base model's: 30 new tokens/s on cpu |",
        "| loss | 3.250 nats per held-out token; base model 3.300 |",
        "| gap to the base model | −0.050 ± 0.004 nats |", "| tasks | piqa acc 0.61 |",
        "The prompt: `Once`\n\n````\nOnce upon ``` a time\n````",
    ):  # fmt: skip
        assert row in open_part, row
    assert open_part.count("![") == 1
    heads = [line[3:] for line in open_part.splitlines() if line.startswith("## ")]
    assert heads == ["What it is for", "A sample", "Training data", "Limits"]
    assert [one.split("</summary>")[0].removeprefix("<summary>") for one in details] == [
        "Results of all variants", "Size and speed", "Task scores", "Where each layer comes from",
        "Recipe", "Provenance",
    ]  # fmt: skip
    assert all("</details>" in one for one in details)


def test_the_code_on_a_card_runs_as_it_stands(tiny_reference, tmp_path, capsys):
    run = tmp_path / "run"
    (run / "target").mkdir(parents=True)
    for path in tiny_reference.iterdir():
        (run / "target" / path.name).write_bytes(path.read_bytes())
    recipe = RECORD["recipe"] | {"report": {"prompts": ['the "small" model\n```\nlearns']}}
    (run / "run.json").write_text(json.dumps({"format": 1} | RECORD | {"recipe": recipe}))
    write_card(run, {})
    card = (run / "target" / "README.md").read_text()
    code = card.partition("```python\n")[2].partition("\n```\n")[0]
    exec(code, {"__name__": "__main__"})
    assert capsys.readouterr().out.startswith('the "small" model')


def test_a_card_that_is_sent_names_its_repository():
    card = card_text(typed(RECORD), INHERITED, [], "/home/me/runs/small/target")
    sent = with_path(card, "me/small")
    assert 'path = "me/small"' in sent and "/home/me" not in sent
    assert with_path(sent, "/home/me/runs/small/target") == card


def test_the_card_leaves_unknown_facts_out():
    fields, body = split_front_matter(card_text(RunRecord(), {}, []))
    assert fields.keys() == {"library_name", "pipeline_tag", "tags"}
    assert "None" not in body and "No task was evaluated" in body


def test_a_reference_that_is_not_on_the_hub_is_no_base_model():
    fields, _ = made(reference=RECORD["reference"] | {"model": "/home/me/large", "revision": None})
    assert "base_model" not in fields and fields["license"] == "apache-2.0"


def test_of_a_run_only_the_scores_of_its_target_are_on_the_card():
    def row(name, role, value, **key):
        score = {"task": "piqa", "shots": 0, "metrics": {"acc": {"value": value}}, "key": key}
        return {"name": name, "role": role, "layers": 4, "tokens": None, "scores": [score]}

    models = [
        row("reference", "reference", 0.9),
        row("inherit", "target", 0.5, limit=20),
        row("scratch", "control", 0.3),
    ]
    fields, body = made(evaluation={"models": models})
    metrics = [result["metrics"][0] for result in fields["model-index"][0]["results"]]
    assert metrics[1:] == [{"type": "acc", "value": 0.5, "args": {"num_fewshot": 0, "limit": 20}}]
    assert "0.5000" in body and "0.9000" not in body
    assert "Of `piqa`, only the first 20 questions were asked." in body


@pytest.mark.parametrize("kept", [None, 3, "x", [3, None, {}], {"piqa": 3}, {"results": []}])
def test_broken_scores_are_passed_over(kept):
    fields, body = made(evaluation=kept)
    assert len(fields["model-index"][0]["results"]) == 1
    assert "No task was evaluated." in body


def test_the_card_stands_in_the_target_with_its_figures(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps(RECORD))
    assert write_card(tmp_path, {}) is None
    for name in ("target/config.json", "report/figures/not-drawn.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("{}")
    path = write_card(tmp_path, {"speed.png": b"other", "val-loss.png": b"picture"})
    assert path == tmp_path / "target/README.md" and "figures/val-loss.png" in path.read_text()
    assert "not-drawn" not in path.read_text()
    figures = {file.name: file.read_bytes() for file in (tmp_path / "target/figures").iterdir()}
    assert figures == {"val-loss.png": b"picture"}


def test_a_scaled_run_says_so_before_its_verdict():
    _, body = made(scaled="Scaled by 1e-08: no result of the method.")
    assert body.index("no result of the method") < body.index("Matched: ")


def test_text_of_its_own_for_validation_is_not_called_held_out():
    data = RECORD["recipe"]["data"]
    _, body = made(recipe=RECORD["recipe"] | {"data": data | {"val_source": "val.txt"}})
    assert "run's own source" not in body and "took as its validation set" in body
