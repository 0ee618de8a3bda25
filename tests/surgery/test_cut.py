"""The first layers of real tiny models: bit-equal, whole, and computing the same."""

import hashlib
import json
import os
import shutil
import stat
from pathlib import Path

import pytest
import tiny_models
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import inheritune.surgery.cut as room
from inheritune.errors import RecipeError, SourceError, UnsupportedModelError
from inheritune.model_files import write as shards
from inheritune.model_files.directory import open_model
from inheritune.planning.candidates import plan_cut
from inheritune.surgery.cut import inherit
from inheritune.verification.model import verify_model

FAMILIES = list(tiny_models.FAMILIES)
CUTS = [(f, n) for f in FAMILIES for n in (1, 2, 3)] + [("gemma3", 6), ("smollm3", 5), ("olmo3", 4)]
IDS = torch.randint(0, tiny_models.VOCAB, (2, 24), generator=torch.Generator().manual_seed(1))


def tensors_of(directory: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in sorted(directory.glob("*.safetensors")):
        found |= load_file(file)
    return found


def load(directory: Path):
    model, info = AutoModelForCausalLM.from_pretrained(
        directory, output_loading_info=True, attn_implementation="eager"
    )
    assert not any(info.values()), info
    return model.eval()


def layer_list(model, layers: int):
    return next(
        m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == layers
    )


def last_layer_output(model, layers: int) -> torch.Tensor:
    seen = []

    def hook(module, inputs, output):
        seen.append(output[0] if isinstance(output, tuple) else output)

    handle = layer_list(model, layers)[-1].register_forward_hook(hook)
    with torch.no_grad():
        model(IDS)
    handle.remove()
    return seen[0]


def files_of(directory: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in directory.iterdir()}


@pytest.mark.parametrize("family, layers", CUTS)
def test_every_kept_tensor_is_bit_equal_and_nothing_outside_the_layers_is_lost(
    tiny_model, tmp_path, family, layers
):
    reference = open_model(str(tiny_model(family)))
    inherit(reference, layers, tmp_path / "out")
    before, after = tensors_of(reference.path), tensors_of(tmp_path / "out")
    prefix = reference.container.prefix
    expected = {
        name
        for name in before
        if not name.startswith(prefix) or int(name[len(prefix) :].split(".")[0]) < layers
    }
    assert after.keys() == expected
    assert all(after[n].dtype == before[n].dtype for n in after)
    assert all(torch.equal(after[n], before[n]) for n in after)


@pytest.mark.parametrize("family, layers", CUTS)
def test_the_last_kept_layer_gives_what_it_gives_in_the_reference(
    tiny_model, tmp_path, family, layers
):
    reference = open_model(str(tiny_model(family)))
    inherit(reference, layers, tmp_path / "out")
    whole, target = load(reference.path), load(tmp_path / "out")
    with torch.no_grad():
        wanted = whole(IDS, output_hidden_states=True).hidden_states[layers]
        logits = target(IDS).logits
    assert torch.equal(last_layer_output(target, layers), wanted)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_all_layers_give_the_reference_itself(tiny_model, tmp_path, family):
    reference = open_model(str(tiny_model(family)))
    target = inherit(reference, reference.layers, tmp_path / "out")
    assert target.config == reference.config
    assert json.loads((target.path / "inherit.json").read_text())["config_edits"] == []
    with torch.no_grad():
        assert torch.equal(load(reference.path)(IDS).logits, load(target.path)(IDS).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_class_reads_the_same_settings_for_the_layers_that_are_kept(
    tiny_model, tmp_path, family
):
    reference = open_model(str(tiny_model(family)))
    target = inherit(reference, 3, tmp_path / "out")
    before, after = (AutoConfig.from_pretrained(m.path).to_dict() for m in (reference, target))
    changed = {k for k in before if before[k] != after[k]} - {"attention_types", "_name_or_path"}
    for key in changed:
        is_count = after[key] == 3
        assert is_count or after[key] == before[key][:3], key


@pytest.mark.parametrize("family", ["llama", "gpt2", "smollm3"])
def test_the_same_bytes_come_out_twice(tiny_model, tmp_path, family):
    for name in ("first", "second"):
        inherit(open_model(str(tiny_model(family))), 2, tmp_path / name)
    assert files_of(tmp_path / "first") == files_of(tmp_path / "second")


@pytest.mark.parametrize("family", ["llama", "llama-tied"])
def test_shards_stay_shards_with_an_index_that_is_right(tmp_path, family):
    tiny_models.save(family, tmp_path / "reference", shard="40KB")
    reference = open_model(str(tmp_path / "reference"))
    assert len(reference.metadata) > 2
    target = inherit(reference, 2, tmp_path / "out")
    index = json.loads((target.path / "model.safetensors.index.json").read_text())
    held = tensors_of(target.path)
    assert index["weight_map"].keys() == held.keys()
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in held.values())
    before = tensors_of(reference.path)
    assert all(torch.equal(held[n], before[n]) for n in held)
    load(target.path)


def test_a_file_larger_than_a_shard_may_be_is_split(tiny_reference, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "MAX_SHARD_BYTES", 50_000)
    target = inherit(open_model(str(tiny_reference)), 3, tmp_path / "out")
    files = sorted(target.path.glob("model-*.safetensors"))
    assert len(files) > 1
    assert all(sum(t.nbytes for t in load_file(f).values()) <= 50_000 for f in files)
    load(target.path)


def test_bf16_stays_bf16_and_the_file_stays_a_torch_file(tmp_path):
    tiny_models.save("qwen3", tmp_path / "reference", dtype=torch.bfloat16)
    target = inherit(open_model(str(tmp_path / "reference")), 2, tmp_path / "out")
    before, after = tensors_of(tmp_path / "reference"), tensors_of(target.path)
    assert {t.dtype for t in after.values()} == {torch.bfloat16}
    assert all(torch.equal(after[n], before[n]) for n in after)
    with safe_open(target.path / "model.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"


def test_tensors_of_mixed_width_keep_their_alignment(reference, tmp_path):
    held = load_file(reference / "model.safetensors")
    held = {n: t.to(torch.bfloat16) if "mlp" in n else t for n, t in held.items()}
    held["model.layers.0.odd"] = torch.zeros(3, dtype=torch.uint8)
    held["model.layers.3.odd"] = torch.zeros(5, dtype=torch.uint8)
    save_file(held, reference / "model.safetensors", {"format": "pt", "made_by": "a test"})
    target = inherit(open_model(str(reference)), 1, tmp_path / "out")
    for tensor in target.tensors.values():
        assert tensor.offset % {"F32": 4, "BF16": 2, "U8": 1}[tensor.dtype] == 0
    assert target.metadata["model.safetensors"]["made_by"] == "a test"


def test_a_head_is_written_if_and_only_if_the_reference_has_it(tiny_model, tmp_path):
    for family, has_head in [("llama", True), ("llama-tied", False)]:
        target = inherit(open_model(str(tiny_model(family))), 2, tmp_path / family)
        assert ("lm_head.weight" in target.tensors) is has_head
        model = load(target.path)
        tied = model.lm_head.weight is model.model.embed_tokens.weight
        assert tied is not has_head


def test_tokenizer_licence_templates_and_code_are_copied_and_the_card_is_not(reference, tmp_path):
    others = ["LICENSE", "NOTICE.txt", "chat_template.jinja", "modeling_x.py", "merges.txt"]
    for name in others:
        (reference / name).write_bytes(b"\xff\x00 {{ not rendered }}")
    (reference / "additional_chat_templates").mkdir()
    (reference / "additional_chat_templates" / "tool.jinja").write_text("{{ 1 }}")
    for name in ("README.md", "pytorch_model.bin", "training_args.bin", "trainer_state.json"):
        (reference / name).write_bytes(b"not ours")
    target = inherit(open_model(str(reference)), 2, tmp_path / "out").path
    assert "not ours" not in (target / "README.md").read_text()
    for name in (*others, "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (target / name).read_bytes() == (reference / name).read_bytes()
    assert (target / "additional_chat_templates" / "tool.jinja").read_text() == "{{ 1 }}"
    assert {p.name for p in target.iterdir()} == {
        *others,
        *("tokenizer.json", "tokenizer_config.json", "generation_config.json"),
        *("additional_chat_templates", "config.json", "model.safetensors", "inherit.json"),
        "README.md",
    }


def test_the_target_generates_text_with_its_tokenizer(tiny_reference, tmp_path):
    target = inherit(open_model(str(tiny_reference)), 2, tmp_path / "out").path
    tokenizer, model = AutoTokenizer.from_pretrained(target), load(target)
    ids = tokenizer("def take(", return_tensors="pt")
    runs = [
        model.generate(**ids, max_new_tokens=8, do_sample=False, use_cache=cache)
        for cache in (True, False)
    ]
    assert torch.equal(*runs)
    assert tokenizer.decode(ids["input_ids"][0]) == "def take("


def test_the_record_says_where_every_byte_came_from(tiny_model, tmp_path):
    reference = open_model(str(tiny_model("smollm3")))
    target = inherit(reference, 2, tmp_path / "out")
    record = json.loads((target.path / "inherit.json").read_text())
    config = (reference.path / "config.json").read_bytes()
    assert record["reference"]["config_sha256"] == hashlib.sha256(config).hexdigest()
    assert record["reference"]["layers"] == 6
    assert record["layer_map"] == [0, 1]
    assert record["check"] == "complete: SmolLM3ForCausalLM, layers as in the reference"
    edits = {e["key"]: e for e in record["config_edits"]}
    assert edits.keys() == {"num_hidden_layers", "no_rope_layers", "layer_types"}
    assert all(e["reason"] for e in edits.values())
    assert record["tensors"].keys() == target.tensors.keys()
    for name, entry in record["tensors"].items():
        source, written = entry["source"], target.tensors[name]
        before = (reference.path / source["file"]).read_bytes()
        after = (target.path / entry["file"]).read_bytes()
        piece = before[source["offset"] : source["offset"] + source["size"]]
        assert piece == after[written.offset : written.offset + written.size]


@pytest.mark.parametrize("layers", [-1, 0, 5, 10**12])
def test_layers_out_of_range_are_refused_with_the_range(tiny_reference, tmp_path, layers):
    with pytest.raises(RecipeError) as error:
        inherit(open_model(str(tiny_reference)), layers, tmp_path / "out")
    assert str(error.value) == (
        f"cannot keep {layers} layers: the reference has 4. Choose between 1 and 4."
    )
    assert not list(tmp_path.iterdir())


def test_a_used_directory_is_refused_and_left_as_it_is(tiny_reference, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RecipeError, match="already exists"):
        inherit(open_model(str(tiny_reference)), 2, tmp_path)
    assert files_of(tmp_path) == {"notes.txt": b"mine"}


def test_an_empty_directory_and_missing_parents_are_fine(tiny_reference, tmp_path):
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "empty", tmp_path / "a" / "b" / "c"):
        assert inherit(open_model(str(tiny_reference)), 2, out).layers == 2


def test_nothing_is_written_into_the_reference(reference):
    before = files_of(reference)
    with pytest.raises(RecipeError, match="lies in the reference"):
        inherit(open_model(str(reference)), 2, reference / "out")
    assert files_of(reference) == before


def test_a_failure_leaves_nothing_behind(tiny_reference, tmp_path, monkeypatch):
    def fail(*arguments):
        raise SourceError("the check failed")

    monkeypatch.setattr(room, "check_cut", fail)
    with pytest.raises(SourceError, match="the check failed"):
        inherit(open_model(str(tiny_reference)), 2, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="POSIX modes")
@pytest.mark.parametrize("mask, file, folder", [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_modes_follow_the_umask(tiny_reference, tmp_path, set_umask, mask, file, folder):
    set_umask(mask)
    target = inherit(open_model(str(tiny_reference)), 2, tmp_path / "out").path
    assert stat.S_IMODE(target.stat().st_mode) == folder
    assert {stat.S_IMODE(p.stat().st_mode) for p in target.iterdir()} == {file}


def test_prediction_layers_are_dropped_and_said(reference, tmp_path):
    held = load_file(reference / "model.safetensors")
    for name in [n for n in held if n.startswith("model.layers.3.")]:
        held[name.replace(".3.", ".4.")] = held[name].clone()
    held["mtp.fc.weight"] = torch.ones(2, 2)
    save_file(held, reference / "model.safetensors", {"format": "pt"})
    config = json.loads((reference / "config.json").read_text())
    config["num_nextn_predict_layers"] = 1
    (reference / "config.json").write_text(json.dumps(config))
    target = inherit(open_model(str(reference)), 4, tmp_path / "out")
    record = json.loads((target.path / "inherit.json").read_text())
    assert target.config["num_nextn_predict_layers"] == 0
    assert not any(".4." in n or n.startswith("mtp") for n in target.tensors)
    assert "mtp.fc.weight" in record["dropped_prediction_tensors"]
    assert any(n.startswith("model.layers.4.") for n in record["dropped_prediction_tensors"])


def test_stray_buffers_of_old_files_stay_with_their_layers(reference, tmp_path):
    held = load_file(reference / "model.safetensors")
    for layer in range(4):
        held[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(held, reference / "model.safetensors", {"format": "pt"})
    target = inherit(open_model(str(reference)), 2, tmp_path / "out")
    assert sum("inv_freq" in name for name in target.tensors) == 2


@pytest.mark.parametrize(
    "family, layers, field",
    [("gemma3", "last:2", "layer_types"), ("smollm3", "last:3", "no_rope_layers")],
)
def test_layers_that_cannot_be_told_by_number_are_named_for_other_engines(
    tiny_model, tmp_path, family, layers, field
):
    reference = open_model(str(tiny_model(family)))
    target = inherit(reference, layers, tmp_path / "out")
    record = json.loads((target.path / "inherit.json").read_text())
    assert field in record["by_number"]
    assert "In other engines" in (target.path / "README.md").read_text()
    assert field in plan_cut(reference, layers).by_number


@pytest.mark.parametrize(
    "family, layers", [("gemma3", "4"), ("llama", "last:2"), ("smollm3", "every:2")]
)
def test_layers_that_are_where_their_numbers_say_need_no_word(tiny_model, tmp_path, family, layers):
    target = inherit(open_model(str(tiny_model(family))), layers, tmp_path / "out")
    assert "by_number" not in json.loads((target.path / "inherit.json").read_text())


def test_a_tokenizer_of_any_name_comes_along_and_what_stays_behind_is_named(reference, tmp_path):
    for name in ("tiktoken.model", "tokenization_kimi.py"):
        (reference / name).write_bytes(b"IQ== 0\n")
    for name in ("pytorch_model.bin", "README.md"):
        (reference / name).write_bytes(b"")
    (reference / "original").mkdir()
    (reference / "original" / "params.json").write_text("{}")
    target = inherit(open_model(str(reference)), 2, tmp_path / "out")
    assert (target.path / "tiktoken.model").read_bytes() == b"IQ== 0\n"
    assert (target.path / "tokenization_kimi.py").exists()
    record = json.loads((target.path / "inherit.json").read_text())
    assert record["left_behind"] == ["README.md", "original/", "pytorch_model.bin"]


def test_verify_finds_a_file_of_the_reference_that_is_neither_there_nor_named(reference, tmp_path):
    (reference / "tiktoken.model").write_bytes(b"IQ== 0\n")
    (reference / "README.md").write_text("a card")
    model = open_model(str(reference))
    target = inherit(model, 2, tmp_path / "out")
    side = next(f for f in verify_model(target, model) if f.part == "side files")
    assert side.text.endswith("files equal the reference's; left behind: README.md")
    (target.path / "tiktoken.model").unlink()
    with pytest.raises(SourceError, match=r"out lacks tiktoken\.model of the reference"):
        list(verify_model(open_model(str(target.path)), model))
    record = json.loads((target.path / "inherit.json").read_text())
    del record["left_behind"]  # as an earlier version wrote it
    (target.path / "inherit.json").write_text(json.dumps(record))
    side = next(f for f in verify_model(target, model) if f.part == "side files")
    assert "not there: tiktoken.model" in side.text and not side.proven


def fp16_neox_with_masks(directory: Path) -> Path:
    """GPT-NeoX as it was published in fp16: a mask of -1e9 in each layer, which is -inf there."""
    tiny_models.save("gpt-neox", directory, torch.float16)
    held = load_file(directory / "model.safetensors")
    prefix = "gpt_neox.layers."
    held |= {f"{prefix}{i}.attention.masked_bias": torch.tensor(-1e9).half() for i in range(4)}
    mask = torch.ones(1, 1, 8, 8, dtype=torch.uint8).tril()
    held |= {f"{prefix}{i}.attention.bias": mask.clone() for i in range(4)}
    save_file(held, directory / "model.safetensors", {"format": "pt"})
    return directory


def test_a_mask_of_minus_infinity_that_the_class_does_not_use_is_copied_with_a_warning(tmp_path):
    reference = open_model(str(fp16_neox_with_masks(tmp_path / "neox")))
    with pytest.warns(UserWarning, match=r"masked_bias of neox holds NaN or infinite .* not use"):
        target = inherit(reference, 2, tmp_path / "out")
    assert "gpt_neox.layers.1.attention.masked_bias" in target.tensors
    record = json.loads((target.path / "inherit.json").read_text())
    assert len(record["unused_tensors"]) == 4
    findings = {f.part: f for f in verify_model(target, reference)}
    assert findings["values"].text == "all finite but 2 tensors that the class does not use"
    assert all(finding.proven for finding in findings.values())


def test_an_infinite_weight_beside_such_a_mask_is_still_refused(tmp_path):
    reference = fp16_neox_with_masks(tmp_path / "neox")
    held = load_file(reference / "model.safetensors")
    held["gpt_neox.layers.0.attention.dense.bias"][0] = torch.inf
    save_file(held, reference / "model.safetensors", {"format": "pt"})
    with pytest.raises(SourceError, match=r"layers\.0\.attention\.dense\.bias holds NaN"):
        inherit(open_model(str(reference)), 2, tmp_path / "out")


def test_names_without_the_prefix_of_the_head_model_are_kept_as_they_are(reference, tmp_path):
    held = load_file(reference / "model.safetensors")
    held = {n.removeprefix("model."): t for n, t in held.items()}
    save_file(held, reference / "model.safetensors", {"format": "pt"})
    target = inherit(open_model(str(reference)), 2, tmp_path / "out")
    assert "layers.1.mlp.up_proj.weight" in target.tensors
    load(target.path)


def test_a_list_beside_the_layers_that_the_class_does_not_use_is_an_error_for_an_unknown_class(
    reference, tmp_path
):
    held = load_file(reference / "model.safetensors")
    held |= {f"model.gates.{i}.weight": torch.ones(2) for i in range(3)}
    save_file(held, reference / "model.safetensors", {"format": "pt"})
    target = inherit(open_model(str(reference)), 2, tmp_path / "known")
    record = json.loads((target.path / "inherit.json").read_text())
    assert "model.gates.0.weight" in record["unused_tensors"]
    config = json.loads((reference / "config.json").read_text())
    (reference / "config.json").write_text(json.dumps(config | {"model_type": "unheard_of"}))
    with pytest.raises(UnsupportedModelError, match=r"beside its layers: model\.gates\."):
        inherit(open_model(str(reference)), 2, tmp_path / "out")


def test_weights_with_a_part_for_each_layer_are_cut_too(tmp_path):
    tiny_models.save_gemma3n(tmp_path / "reference")
    reference = open_model(str(tmp_path / "reference"))
    target = inherit(reference, 5, tmp_path / "out")
    before, after = tensors_of(reference.path), tensors_of(target.path)
    columns = "model.embed_tokens_per_layer.weight"
    rows = "model.per_layer_model_projection.weight"
    assert torch.equal(after[columns], before[columns][:, : 5 * 4])
    assert torch.equal(after[rows], before[rows][: 5 * 4])
    assert target.config["num_kv_shared_layers"] == 0
    load(target.path)


def test_a_directory_name_of_200_characters_with_spaces_works(tiny_reference, tmp_path):
    reference = open_model(str(tiny_reference))
    assert inherit(reference, 1, tmp_path / ("ä b" * 50)).layers == 1
    with pytest.raises(RecipeError, match="too long"):
        inherit(reference, 1, tmp_path / ("ä b" * 70))


def test_staging_of_a_killed_writer_is_swept(tiny_reference, tmp_path):
    stale = tmp_path / ".out.tmp-0badcafe"
    stale.mkdir()
    (stale / "model.safetensors").write_bytes(b"half")
    inherit(open_model(str(tiny_reference)), 2, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.shared_data
@pytest.mark.parametrize("layers", [1, 2, 3, 4, 5])
def test_stories260k_is_cut_exactly(shared_data, tmp_path, layers):
    reference = open_model(str(shared_data / "checkpoints" / "stories260K"))
    target = inherit(reference, layers, tmp_path / "out")
    before, after = tensors_of(reference.path), tensors_of(target.path)
    assert all(torch.equal(after[n], before[n]) for n in after)
    whole, cut = load(reference.path), load(target.path)
    with torch.no_grad():
        states = whole(IDS, output_hidden_states=True)
        if layers == 5:
            assert torch.equal(cut(IDS).logits, states.logits)
        else:
            assert torch.equal(last_layer_output(cut, layers), states.hidden_states[layers])


def test_the_reference_may_be_read_only(reference, tmp_path):
    for path in (*reference.iterdir(), reference):
        path.chmod(path.stat().st_mode & ~0o222)
    try:
        assert inherit(open_model(str(reference)), 2, tmp_path / "out").layers == 2
    finally:
        reference.chmod(0o755)
    shutil.rmtree(reference)
