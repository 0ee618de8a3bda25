"""What is proven about a target, and that each way to break it is found and named."""

import json

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from inheritune.errors import SourceError
from inheritune.model_files.directory import open_model
from inheritune.surgery.class_check.weights_check import align_weights
from inheritune.surgery.cut import inherit
from inheritune.verification.model import verify_model

PARTS = ["names", "values", "digests", "config", "bytes", "side files", "class", "reload",
         "cache", "function"]  # fmt: skip


@pytest.fixture
def target(reference, tmp_path):
    return inherit(open_model(str(reference)), 2, tmp_path / "target").path


def prove(target, reference=None):
    other = None if reference is None else open_model(str(reference))
    return list(verify_model(open_model(str(target)), other))


def rewrite(directory, change):
    held = load_file(directory / "model.safetensors")
    change(held)
    save_file(held, directory / "model.safetensors", {"format": "pt"})


def edit(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize("family", list(tiny_models.FAMILIES))
def test_every_part_of_a_target_is_proven(tiny_model, tmp_path, family):
    reference = open_model(str(tiny_model(family)))
    for layers in (1, reference.layers):
        target = inherit(reference, layers, tmp_path / str(layers))
        findings = list(verify_model(target, reference))
        assert [finding.part for finding in findings] == PARTS
        assert all(finding.proven for finding in findings), findings


def test_without_its_reference_a_target_is_compared_with_its_record(target):
    findings = {finding.part: finding for finding in prove(target)}
    parts = ["names", "values", "digests", "tokenizer", "class", "reload", "cache", "function"]
    assert list(findings) == parts
    assert [part for part, finding in findings.items() if not finding.proven] == ["function"]
    assert findings["function"].text == "not compared: the reference was not named"


def test_a_changed_byte_is_found_with_and_without_the_reference(target, reference):
    weights = target / "model.safetensors"
    data = bytearray(weights.read_bytes())
    tensor = open_model(str(target)).tensors["model.norm.weight"]
    data[tensor.offset] ^= 1
    weights.write_bytes(data)
    for other in (None, reference):
        with pytest.raises(SourceError, match=r"model\.norm\.weight has the xxh3 digest"):
            prove(target, other)


def test_a_changed_record_does_not_hide_a_changed_byte_from_the_reference(target, reference):
    rewrite(target, lambda held: held["model.norm.weight"].add_(1))
    from inheritune.model_files.scan import scan

    model = open_model(str(target))
    found = scan(model.tensors.values())
    record = json.loads((target / "inherit.json").read_text())
    for name, entry in record["tensors"].items():
        entry["xxh3"] = found[name].xxh3
    (target / "inherit.json").write_text(json.dumps(record))
    assert prove(target)
    with pytest.raises(SourceError, match=r"model\.norm\.weight differs from model\.norm\.weight"):
        prove(target, reference)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda h: h.pop("lm_head.weight"), r"lacks lm_head\.weight, which its record names"),
        (lambda h: h.update(x=torch.ones(1)), r"holds x, which its record does not name"),
        (lambda h: h["lm_head.weight"].fill_(float("nan")), r"lm_head\.weight holds NaN"),
    ],
)
def test_a_lost_an_added_and_a_broken_tensor_are_named(target, change, said):
    rewrite(target, change)
    with pytest.raises(SourceError, match=said):
        prove(target)


def test_a_config_that_was_changed_is_found(target, reference):
    edit(target / "config.json", rope_theta=1.0)
    with pytest.raises(SourceError, match=r"config\.json says rope_theta = 1\.0; the reference"):
        prove(target, reference)


def test_a_side_file_that_was_changed_is_found(target, reference):
    (target / "tokenizer.json").write_text("{}")
    with pytest.raises(SourceError, match=r"tokenizer\.json is not what it is in the reference"):
        prove(target, reference)


def test_another_reference_is_found(target, tmp_path):
    tiny_models.save("llama", tmp_path / "other")
    rewrite(tmp_path / "other", lambda held: held["lm_head.weight"].add_(1))
    with pytest.raises(SourceError, match=r"lm_head\.weight differs from lm_head\.weight"):
        prove(target, tmp_path / "other")
    tiny_models.save("qwen3", tmp_path / "foreign")
    with pytest.raises(SourceError):
        prove(target, tmp_path / "foreign")


def test_a_trained_target_is_checked_in_all_that_training_leaves(target, reference):
    rewrite(target, lambda held: held["lm_head.weight"].add_(1))
    (target / "training.json").write_text("{}")
    findings = {finding.part: finding for finding in prove(target, reference)}
    assert [part for part, finding in findings.items() if not finding.proven] == [
        "digests",
        "bytes",
        "function",
    ]
    assert "trained" in findings["bytes"].text


def test_fresh_tensors_of_a_record_must_be_those_its_parts_leave_out(target):
    rewrite(target, lambda held: held["model.layers.0.mlp.up_proj.weight"].normal_())
    record = json.loads((target / "inherit.json").read_text())
    entry = record["tensors"]["model.layers.0.mlp.up_proj.weight"]
    entry |= {"source": None}
    for parts in ("all", "outer-only", "attention"):
        edit(target / "inherit.json", tensors=record["tensors"], parts=parts)
        with pytest.raises(SourceError, match=r"says that .* (fresh|inherited), which its parts"):
            prove(target)


@pytest.mark.parametrize(
    "fields",
    [
        {"dtype": "bogus"},
        {"dtype": []},
        {"layer_map": []},
        {"layer_map": [1, 0]},
        {"layer_map": [True]},
        {"parts": "x"},
        {"tensors": {"a": {"source": 5}}},
    ],
)
def test_a_record_that_says_what_cannot_be_is_refused_with_the_key(target, fields):
    edit(target / "inherit.json", **fields)
    with pytest.raises(SourceError, match=f"holds {next(iter(fields))} = "):
        prove(target)


def test_a_record_of_more_layers_than_the_reference_has_is_refused(target, reference):
    edit(target / "inherit.json", layer_map=[0, 99])
    with pytest.raises(SourceError, match="names layer 99, but reference has 4"):
        prove(target, reference)


@pytest.mark.parametrize(
    "record", ["{}", "[]", '{"format": 1}', '{"format": 2, "tensors": {}, "layer_map": ["x"]}',
               '{"format": 2, "tensors": {"a": 1}, "layer_map": [0]}']
)  # fmt: skip
def test_a_directory_without_a_record_of_ours_is_refused(target, record):
    (target / "inherit.json").write_text(record)
    with pytest.raises(SourceError, match=r"inherit\.json|record"):
        prove(target)
    (target / "inherit.json").unlink()
    with pytest.raises(SourceError, match=r"has no inherit\.json"):
        prove(target)


def test_a_trained_target_may_have_the_precision_of_its_training(target, reference):
    model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.bfloat16)
    model.save_pretrained(target)  # as a training saves: its own dtype in config.json
    edit(target / "config.json", **json.loads((reference / "config.json").read_text())
         | {"num_hidden_layers": 2, "dtype": "bfloat16"})  # fmt: skip
    (target / "training.json").write_text("{}")
    said = {finding.part: finding.text for finding in prove(target, reference)}
    assert said["bytes"] == "not compared: the target was trained"
    edit(target / "config.json", rope_theta=3.0)
    with pytest.raises(SourceError) as raised:
        prove(target, reference)
    assert "rope" in raised.value.message and raised.value.hint


def test_a_reference_on_its_own_cannot_be_verified(reference):
    with pytest.raises(SourceError, match=r"has no inherit\.json"):
        prove(reference)


@pytest.mark.shared_data
@pytest.mark.parametrize(
    "layers", [1, 3, 5, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 4))]
)
def test_stories260k_is_proven_for_every_n(shared_data, tmp_path, layers):
    reference = open_model(str(shared_data / "checkpoints" / "stories260K"))
    target = inherit(reference, layers, tmp_path / "target")
    assert all(finding.proven for finding in verify_model(target, reference))
    # The first 100 stories, each after the beginning-of-text token, as far as the context reaches.
    lines = (shared_data / "text" / "tinystories.jsonl").read_text().splitlines()[:100]
    tokenizer = AutoTokenizer.from_pretrained(target.path)
    model = AutoModelForCausalLM.from_pretrained(target.path)
    total = count = 0
    for line in lines:
        text = json.loads(line)["text"]
        ids = torch.tensor([[1, *tokenizer(text, add_special_tokens=False).input_ids][:512]])
        with torch.no_grad():
            total += float(model(ids, labels=ids).loss) * (ids.numel() - 1)
        count += ids.numel() - 1
    known = {5: "1.41", 4: "2.36", 3: "3.90", 2: "7.16", 1: "14.1"}[layers]
    assert f"{total / count:.{len(known.split('.')[1])}f}" == known


def test_a_proof_does_not_depend_on_where_weights_lie_in_memory(tiny_model):
    model = AutoModelForCausalLM.from_pretrained(tiny_model("llama"), dtype="auto")
    head, state = model.lm_head.weight, {k: v.clone() for k, v in model.state_dict().items()}
    for weight in model.parameters():  # as it may lie in a file that is mapped
        shifted = torch.empty(weight.numel() + 1)[1:].view_as(weight)
        weight.data = shifted.copy_(weight.data)
    left = model.model.layers[1]
    align_weights(model, [left])
    unaligned = {n for n, weight in model.named_parameters() if weight.data_ptr() % 64}
    assert unaligned == {f"model.layers.1.{name}" for name, _ in left.named_parameters()}
    assert model.lm_head.weight is head
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
