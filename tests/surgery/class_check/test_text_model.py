"""The language model inside of one that also reads images, taken out as a model of its own."""

import json
import shutil

import pytest
import torch
import transformers
from image_text_models import SIBLINGS, mistral3, save, save_older_qwen2_vl
from safetensors.torch import load_file, save_file

import inheritune
from inheritune.errors import SourceError, UnsupportedModelError
from inheritune.model_files.directory import open_model
from inheritune.surgery.class_check.ask_class import language_problem, text_only
from inheritune.surgery.class_check.text_model import _refuse_other_function
from inheritune.surgery.cut import inherit
from inheritune.surgery.grow import grow
from inheritune.training.models import load_model
from inheritune.verification.model import verify_model


@pytest.mark.parametrize("family", list(SIBLINGS))
def test_the_text_alone_computes_what_the_whole_does_with_text(tmp_path, family):
    whole = save(family, tmp_path / "whole")
    reference = open_model(str(tmp_path / "whole"))
    target = inherit(text_only(reference), 4, tmp_path / "out")
    assert target.config["architectures"] == [SIBLINGS[family]]
    assert not any("vision" in name or "visual" in name for name in target.tensors)
    assert not (target.path / "preprocessor_config.json").exists()
    live = load_model(target.path).eval()
    assert type(live).__name__ == SIBLINGS[family]
    ids = torch.randint(6, 320, (2, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(live(ids).logits, whole(input_ids=ids).logits)
    findings = {finding.part: finding for finding in verify_model(target, reference)}
    assert findings["function"].proven
    assert findings["bytes"].text.endswith("bit for bit")
    assert findings["reload"].loader == "AutoModelForCausalLM"


def test_a_text_whose_logits_the_whole_computes_otherwise_is_refused(tmp_path):
    save("paligemma2", tmp_path / "whole")
    reference = open_model(str(tmp_path / "whole"))
    with pytest.raises(UnsupportedModelError, match="do not follow final_logit_softcapping") as no:
        text_only(reference)
    assert no.value.hint == "Cut it as a whole: leave --text-only out."
    assert "--text-only" not in language_problem(reference)


def test_a_text_that_the_whole_computes_by_another_class_is_refused():
    config = mistral3().config.to_dict()
    own, text = transformers.Mistral3ForConditionalGeneration, config["text_config"]
    _refuse_other_function(own, transformers.MistralForCausalLM, config, text)
    with pytest.raises(UnsupportedModelError, match="computed by MistralModel, and by LlamaModel"):
        _refuse_other_function(own, transformers.LlamaForCausalLM, config, text)


def test_other_layers_of_the_text_are_cut_as_of_any_model(tmp_path):
    save("mistral3", tmp_path / "whole")
    reference = open_model(str(tmp_path / "whole"))
    target = inherit(text_only(reference), "last:2", tmp_path / "out")
    assert target.layers == 2
    record = json.loads((target.path / "inherit.json").read_text())
    assert record["text_only"] is True
    assert "preprocessor_config.json" in record["left_behind"]
    assert all(finding.proven for finding in verify_model(target, reference))
    grown = grow(target, reference, [1, 2, 3], tmp_path / "grown")
    assert grown.config["num_hidden_layers"] == 3
    findings = {finding.part: finding for finding in verify_model(grown, reference)}
    assert findings["bytes"].proven


def test_a_target_of_the_text_is_patched_from_its_own_reference_alone(tmp_path):
    save("mistral3", tmp_path / "whole")
    target = inherit(text_only(open_model(str(tmp_path / "whole"))), 2, tmp_path / "target")
    shutil.copytree(tmp_path / "whole", tmp_path / "other")
    held = load_file(tmp_path / "other" / "model.safetensors")
    held = {n: t + 1 if t.is_floating_point() else t for n, t in held.items()}
    save_file(held, tmp_path / "other" / "model.safetensors", {"format": "pt"})
    with pytest.raises(SourceError, match="was cut from another model"):
        inheritune.patch(target, tmp_path / "other", [2], tmp_path / "no", progress=False)
    with pytest.raises(SourceError, match="was cut from another model"):
        inheritune.family(target, tmp_path / "other", progress=False)
    assert not (tmp_path / "no").exists()
    out = inheritune.patch(target, tmp_path / "whole", [2], tmp_path / "out", progress=False)
    assert out.layers == 3


def test_names_of_older_files_are_understood(tmp_path):
    save("llava", tmp_path / "whole")
    file = tmp_path / "whole" / "model.safetensors"
    held = load_file(file)
    old = {}
    for name, weight in held.items():
        name = name.replace("model.language_model.", "language_model.model.")
        old["language_model.lm_head.weight" if name == "lm_head.weight" else name] = weight
    save_file(old, file, {"format": "pt"})
    target = inherit(text_only(open_model(str(tmp_path / "whole"))), 2, tmp_path / "out")
    assert {"lm_head.weight", "model.norm.weight"} <= target.tensors.keys()


def test_a_config_with_the_fields_of_its_text_at_the_top_is_understood(tmp_path):
    whole = save_older_qwen2_vl(tmp_path / "whole")
    target = inherit(text_only(open_model(str(tmp_path / "whole"))), 4, tmp_path / "out")
    assert "vision_config" not in target.config
    ids = torch.randint(6, 320, (2, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = load_model(target.path).eval()(ids).logits
        torch.testing.assert_close(logits, whole(input_ids=ids).logits)


def test_the_way_to_the_text_is_named_where_only_text_is_taken(tmp_path):
    save("mistral3", tmp_path / "whole")
    model = open_model(str(tmp_path / "whole"))
    words = "is a Mistral3ForConditionalGeneration, which is no model of text alone"
    assert words in language_problem(model)
    assert "--text-only" in language_problem(model)
    assert type(model.load()).__name__ == "Mistral3ForConditionalGeneration"
    with pytest.raises(UnsupportedModelError, match=words):
        load_model(model.path)


def test_a_model_of_text_has_no_other_text(tiny_model):
    with pytest.raises(UnsupportedModelError, match="no class for the text of a LlamaForCausalLM"):
        text_only(open_model(str(tiny_model("llama"))))
