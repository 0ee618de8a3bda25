"""`inheritune analyze`, as people and programs call it."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from inheritune.cli.app import app

FEW = ["--sequences", "3", "--tokens-per-sequence", "24"]


def analyze(*arguments: object):
    return CliRunner().invoke(app, ["analyze", *map(str, arguments)])


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_analyze_shows_every_layer_and_writes_every_head(tiny_reference, tiny_tokens, here):
    done = analyze(tiny_reference, "--tokens", tiny_tokens.path, *FEW)
    assert done.exit_code == 0, done.output
    assert "3 sequences of 24 tokens" in done.stdout
    assert "paper 2, advice" in done.stdout
    found = json.loads((here / "analysis.json").read_text("utf-8"))
    assert [len(row["rank"]) for row in found["models"][0]["attention"]["layers"]] == [4] * 4


def test_analyze_json_is_one_object_and_the_same_again(tiny_reference, tiny_text, here):
    arguments = (tiny_reference, "--text", tiny_text, *FEW, "--json", "--spectrum")
    first, second = analyze(*arguments), analyze(*arguments)
    found = json.loads(first.stdout)
    assert found == json.loads(second.stdout) == json.loads((here / "analysis.json").read_text())
    assert found["models"][0]["role"] == "model" and found["sequences"]["seed"] == 0
    assert len(found["models"][0]["spectrum"]) == 28


def test_a_target_stands_beside_its_reference(tiny_reference, tiny_text, here):
    from inheritune.model_files.directory import open_model
    from inheritune.surgery.cut import inherit

    inherit(open_model(str(tiny_reference)), 2, here / "target")
    done = analyze(
        tiny_reference, "--against", here / "target", "--text", tiny_text, *FEW, "--json"
    )
    reference, target = json.loads(done.stdout)["models"]
    assert (reference["layers"], target["layers"]) == (4, 2)
    # Untrained, its layers are those of the reference.
    assert target["attention"]["layers"] == reference["attention"]["layers"][:2]


def test_analyze_records_whether_sequences_begin_with_bos(tiny_reference, tiny_text, here):
    for asked, has in (("auto", False), ("yes", True), ("no", False)):
        done = analyze(tiny_reference, "--text", tiny_text, *FEW, "--bos", asked, "--json")
        assert json.loads(done.stdout)["sequences"]["bos"] is has


def other_tokenizer(model, out):
    shutil.copytree(model, out)
    text = (out / "tokenizer.json").read_text("utf-8")
    (out / "tokenizer.json").write_text(text + "\n", "utf-8")
    return out


@pytest.mark.parametrize(
    ("arguments", "said", "code"),
    [
        (["--tokens", "{tokens}", "--text", "{text}"], "both given", 2),
        (["--text", "{text}", "--threshold", "1.5"], "--threshold is 1.5", 2),
        (["--text", "{text}", "--bos", "maybe"], "--bos is 'maybe'", 2),
        (["--text", "{text}", "--sequences", "100000"], "100000 are asked for", 3),
        (["--text", "{text}", "--tokens-per-sequence", "999999"], "has 0 sequences", 3),
        (["--text", "{text}", "--tokens-per-sequence", "129"], "has 128 positions", 3),
        (["--tokens", "nowhere"], "no prepared tokens in nowhere", 3),
        (["--text", "{text}", "--out", "."], "is a directory", 2),
    ],
)
def test_analyze_refuses_impossible_options(
    tiny_reference, tiny_text, tiny_tokens, here, arguments, said, code
):
    filled = [a.format(text=tiny_text, tokens=tiny_tokens.path) for a in arguments]
    done = analyze(tiny_reference, *FEW, *filled)
    assert done.exit_code == code, done.output
    assert said in done.stderr
    assert not (here / "analysis.json").exists()


def test_tokens_of_another_tokenizer_are_refused(tiny_reference, tiny_tokens, here):
    other = other_tokenizer(tiny_reference, here / "other")
    done = analyze(other, "--tokens", tiny_tokens.path, *FEW)
    assert done.exit_code == 3 and "prepared with another tokenizer" in done.stderr


def test_a_target_with_another_tokenizer_is_refused(tiny_reference, tiny_text, here):
    other = other_tokenizer(tiny_reference, here / "other")
    done = analyze(tiny_reference, "--against", other, "--text", tiny_text, *FEW)
    assert done.exit_code == 3 and "has another tokenizer than" in done.stderr


def test_a_model_without_attention_is_refused(tiny_text, here):
    import tiny_models
    import transformers

    rows = tiny_models.train_tokenizer(here / "mamba")
    config = transformers.MambaConfig(
        vocab_size=rows, hidden_size=16, num_hidden_layers=2, state_size=4, use_mambapy=False
    )
    transformers.MambaForCausalLM(config).save_pretrained(here / "mamba")
    done = analyze(here / "mamba", "--text", tiny_text, *FEW, "--json")
    assert done.exit_code == 3
    assert json.loads(done.stdout)["error"] == "UnsupportedModelError"
    assert not (here / "analysis.json").exists()


def test_a_real_model_is_analysed(shared_data, tiny_text, here):
    found = sorted((shared_data / "checkpoints").glob("*260*"))
    if (
        not found
        or not (found[0] / "tokenizer.json").exists() | (found[0] / "tokenizer.model").exists()
    ):
        pytest.skip("stories260K is not there")
    done = analyze(found[0], "--text", tiny_text, *FEW, "--json")
    assert done.exit_code == 0, done.output
    ranks = [r["max_rank"] for r in json.loads(done.stdout)["models"][0]["attention"]["layers"]]
    assert len(ranks) == 5 and all(1 <= rank <= 24 for rank in ranks)
