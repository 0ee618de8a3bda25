"""A LoRA adapter is merged into its base model: W' = W + s B A."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from inheritune import api
from inheritune.conversion.lora import Change, Factors, values_of
from inheritune.conversion.rewrite import is_head_weight
from inheritune.errors import MachineError, RecipeError, SourceError, UnsupportedModelError
from inheritune.model_files import refusals
from inheritune.model_files.directory import open_model
from inheritune.model_files.safetensors import read_header
from inheritune.training.models import load_model

WEIGHTS = "model.safetensors"
Q = "model.layers.1.self_attn.q_proj"
UP = "model.layers.0.mlp.up_proj"


def write_adapter(directory, base, tensors, **config):
    directory.mkdir()
    held = {f"base_model.model.{name}": tensor for name, tensor in tensors.items()}
    save_file(held, directory / "adapter_model.safetensors")
    plain = {"peft_type": "LORA", "base_model_name_or_path": str(base), "r": 2, "lora_alpha": 6}
    (directory / "adapter_config.json").write_text(json.dumps(plain | config))
    return directory


def pair(module, rows, columns, rank=2):
    return {
        f"{module}.lora_A.weight": torch.randn(rank, columns),
        f"{module}.lora_B.weight": torch.randn(rows, rank),
    }


def merge(adapter, out):
    """Merge into the base that the adapter names, which it must not do by itself."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    return api.convert(adapter, out, base=config["base_model_name_or_path"], progress=False)


@pytest.fixture
def adapter(tiny_reference, tmp_path):
    tensors = pair(Q, 32, 32) | pair(UP, 64, 32, 4) | {"lm_head.weight": torch.ones(1)}
    tensors["lm_head.weight"] = load_file(tiny_reference / WEIGHTS)["lm_head.weight"] + 1
    more = {"rank_pattern": {UP: 4}, "alpha_pattern": {"up_proj": 2}}
    return write_adapter(tmp_path / "adapter", tiny_reference, tensors, **more)


def test_an_adapter_is_merged_by_its_formula(adapter, tiny_reference, tmp_path):
    with pytest.raises(UnsupportedModelError, match="LoRA adapter") as refused:
        open_model(str(adapter))
    assert f"`inheritune convert {adapter} OUT`" in refused.value.hint
    (adapter / "chat_template.jinja").write_text("of the adapter")
    done = merge(adapter, tmp_path / "out")
    assert done.check == "complete: LlamaForCausalLM"
    base, written = (load_file(d / WEIGHTS) for d in (tiny_reference, tmp_path / "out"))
    held = load_file(adapter / "adapter_model.safetensors")
    expected = dict(base)
    for module, scale in ((Q, 6 / 2), (UP, 2 / 4)):
        a, b = (held[f"base_model.model.{module}.lora_{x}.weight"] for x in "AB")
        expected[f"{module}.weight"] = base[f"{module}.weight"] + b @ a * scale
    expected["lm_head.weight"] = base["lm_head.weight"] + 1
    assert written.keys() == expected.keys()
    for name, weight in written.items():
        if f"{name.removesuffix('.weight')}" in (Q, UP):
            # One matrix product may add in another order than the other.
            assert torch.allclose(weight, expected[name], rtol=1e-6, atol=1e-6)
        else:
            assert torch.equal(weight, expected[name]), name
    assert (tmp_path / "out/chat_template.jinja").read_text() == "of the adapter"
    assert (tmp_path / "out/tokenizer.json").is_file()
    record = json.loads((tmp_path / "out/convert.json").read_text())
    assert record["merged"] == sorted(["lm_head.weight", f"{Q}.weight", f"{UP}.weight"])


def test_a_base_in_a_directory_is_named_by_the_user_alone(adapter, tiny_reference, tmp_path):
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text())
    for base in (str(tiny_reference), "~", "/no/where", "../x"):
        path.write_text(json.dumps(config | {"base_model_name_or_path": base}))
        with pytest.raises(RecipeError, match="names a directory as its base") as refused:
            api.convert(adapter, tmp_path / "out", progress=False)
        assert "--base DIR" in refused.value.hint
    done = api.convert(adapter, tmp_path / "out", base=str(tiny_reference), progress=False)
    assert done.base == tiny_reference.name
    path.write_text(json.dumps(config | {"base_model_name_or_path": None}))
    with pytest.raises(RecipeError, match="names no base model"):
        api.convert(adapter, tmp_path / "more", progress=False)
    with pytest.raises(RecipeError, match="--base goes with a LoRA adapter"):
        api.convert(tiny_reference, tmp_path / "more", base="x", progress=False)


EMBEDDING, HEAD = "model.embed_tokens", "lm_head"


def tied_base(directory, has_copy):
    """Tie head and embedding of a model, whose files may hold a copy of the head."""
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": True}))
    held = load_file(directory / WEIGHTS)
    del held[f"{HEAD}.weight"]
    if has_copy:
        held[f"{HEAD}.weight"] = held[f"{EMBEDDING}.weight"].clone()
    save_file(held, directory / WEIGHTS, {"format": "pt"})
    return held[f"{EMBEDDING}.weight"]


def of_embedding(a, b):
    """Name factors as PEFT names those of an embedding: A is (r, rows), B is (columns, r)."""
    return {f"{EMBEDDING}.lora_embedding_A": b.T, f"{EMBEDDING}.lora_embedding_B": a.T}


def of_head(a, b):
    return {f"{HEAD}.lora_A.weight": a, f"{HEAD}.lora_B.weight": b}


@pytest.mark.parametrize("has_copy", [False, True], ids=["one tensor", "with a copy"])
@pytest.mark.parametrize(
    "trained", ["embedding", "head", "both", "both alike", "factors", "factors alike"]
)
def test_head_and_embedding_of_a_tied_base_are_what_peft_trained(
    reference, tmp_path, trained, has_copy
):
    before = tied_base(reference, has_copy)
    rows, columns = before.shape
    a, b = torch.randn(2, columns), torch.randn(rows, 2)
    one, two = before + 1, before + 2
    changed = torch.addmm(before, b, a, alpha=6 / 2)
    tensors, embedding, head = {
        "embedding": ({f"{EMBEDDING}.weight": one}, one, before),
        "head": ({f"{HEAD}.weight": one}, before, one),
        "both": ({f"{EMBEDDING}.weight": one, f"{HEAD}.weight": two}, one, two),
        "both alike": ({f"{EMBEDDING}.weight": one, f"{HEAD}.weight": one.clone()}, one, one),
        # PEFT saves the embedding beside factors of it.
        "factors": (
            of_embedding(a, b) | {f"{EMBEDDING}.base_layer.weight": before},
            changed,
            before,
        ),
        "factors alike": (of_embedding(a, b) | of_head(a, b), changed, changed),
    }[trained]
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    done = merge(write_adapter(tmp_path / "adapter", reference, tensors), tmp_path / "out")
    written = load_file(tmp_path / "out" / WEIGHTS)
    is_tied = embedding is head
    assert torch.allclose(written[f"{EMBEDDING}.weight"], embedding, rtol=1e-6, atol=1e-6)
    if has_copy or not is_tied:
        assert torch.allclose(written[f"{HEAD}.weight"], head, rtol=1e-6, atol=1e-6)
    else:
        assert f"{HEAD}.weight" not in written
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["tie_word_embeddings"] is is_tied
    assert done.warnings == (
        []
        if is_tied
        else [f"{HEAD}.weight and {EMBEDDING}.weight are two tensors now, as PEFT trained them."]
    )
    loaded = open_model(str(tmp_path / "out")).load()
    assert torch.equal(loaded.lm_head.weight, written.get(f"{HEAD}.weight", loaded.lm_head.weight))
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) is is_tied


def test_a_head_of_its_own_counts_before_anything_is_written(reference, tmp_path, monkeypatch):
    before = tied_base(reference, has_copy=False)
    adapter = write_adapter(tmp_path / "adapter", reference, {f"{HEAD}.weight": before + 1})
    base = sum(tensor.size for tensor in open_model(str(reference)).tensors.values())
    whole = base + before.numel() * before.element_size()
    free = SimpleNamespace(free=base)
    monkeypatch.setattr("shutil.disk_usage", lambda path: free)
    with pytest.raises(MachineError, match=f"{whole:,} bytes are needed"):
        merge(adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    free.free = whole
    assert merge(adapter, tmp_path / "out").warnings


def test_a_tied_head_of_a_class_that_is_not_known_is_sent_to_peft(reference, tmp_path):
    tied_base(reference, has_copy=False)
    path = reference / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "of_nobody"}))
    tensors = {f"{EMBEDDING}.weight": torch.ones(320, 32)}
    directory = write_adapter(tmp_path / "adapter", reference, tensors)
    with pytest.raises(UnsupportedModelError, match="makes two tensors of lm_head"):
        merge(directory, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"use_dora": True}, "use_dora is True"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"r": 3}, "has the rank 2, its config r=3"),
        ({"rank_pattern": ["up_proj"]}, r"rank_pattern is \['up_proj'\]"),
        ({"alpha_pattern": {r"layers\.[01]\.mlp\.up_proj": 2}}, "more than a module's name"),
        ({"alpha_pattern": {"(a+)+b": 2}}, "more than a module's name"),
        ({"alpha_pattern": {"v_proj": 2}}, "'v_proj', which is no module of it"),
        ({"alpha_pattern": {"proj": 2}}, "'proj', which is no module of it"),
    ],
)
def test_another_kind_of_adapter_is_sent_to_peft(adapter, tmp_path, change, match):
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UnsupportedModelError, match=match) as refused:
        merge(adapter, tmp_path / "out")
    assert "merge_and_unload().save_pretrained" in refused.value.hint
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("key", "alpha"),
    [(UP, 2), (f"^{UP}$", 2), (r"layers\.0\.mlp\.up_proj", 2), ("0.mlp.up.proj", 2)],
)
def test_a_pattern_means_the_modules_that_peft_reads_in_it(
    adapter, tiny_reference, tmp_path, key, alpha
):
    path = adapter / "adapter_config.json"
    # The first key that matches counts.
    patterns = {key: alpha, "up_proj": 5, "q_proj": 8}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"alpha_pattern": patterns}))
    merge(adapter, tmp_path / "out")
    base, written = (load_file(d / WEIGHTS) for d in (tiny_reference, tmp_path / "out"))
    held = load_file(adapter / "adapter_model.safetensors")
    for module, scale in ((UP, alpha / 4), (Q, 8 / 2)):
        a, b = (held[f"base_model.model.{module}.lora_{x}.weight"] for x in "AB")
        expected = base[f"{module}.weight"] + b @ a * scale
        assert torch.allclose(written[f"{module}.weight"], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("factors", "config"),
    [
        ({"A": torch.ones(2, 32), "B": torch.ones(32, 3)}, {}),
        ({"A": torch.ones(()), "B": torch.ones(32, 2)}, {}),
        ({"A": torch.ones(0, 32), "B": torch.ones(32, 0)}, {"r": 0}),
        ({"A": torch.ones(2, 32, 1), "B": torch.ones(32, 2, 1)}, {}),
    ],
    ids=["two ranks", "a number", "rank 0", "three dimensions"],
)
def test_factors_that_are_no_product_are_refused(tiny_reference, tmp_path, factors, config):
    tensors = {f"{Q}.lora_{x}.weight": factor for x, factor in factors.items()}
    directory = write_adapter(tmp_path / "adapter", tiny_reference, tensors, **config)
    with pytest.raises(SourceError, match="cannot be multiplied to a matrix"):
        merge(directory, tmp_path / "out")


@pytest.mark.parametrize("name", [f"{Q}.lora_A.default.weight", f"{Q}.weight"])
def test_a_tensor_under_two_names_is_refused(tiny_reference, tmp_path, name):
    tensors = pair(Q, 32, 32)
    rows = 2 if "lora" in name else 32
    tensors |= {name: torch.ones(rows, 32)}
    tensors |= {f"{Q}.base_layer.weight": torch.ones(32, 32)} if rows == 32 else {}
    directory = write_adapter(tmp_path / "adapter", tiny_reference, tensors)
    with pytest.raises(SourceError, match="twice, under two names"):
        merge(directory, tmp_path / "out")


def test_factors_of_one_matrix_under_two_spellings_are_refused(tiny_reference, tmp_path):
    tensors = pair(Q, 32, 32) | pair(Q.removeprefix("model."), 32, 32)
    adapter = write_adapter(tmp_path / "adapter", tiny_reference, tensors)
    with pytest.raises(SourceError, match="twice, under two names"):
        merge(adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_bias_of_a_head_is_no_head():
    names = ["lm_head.weight", "lm_head.bias", "model.embed_out.weight", "model.norm.weight"]
    assert [is_head_weight(name) for name in names] == [True, False, True, False]


def test_an_adapter_of_another_model_is_refused(adapter, tiny_model, tmp_path):
    with pytest.raises(UnsupportedModelError, match=r"which fits no tensor of"):
        api.convert(adapter, tmp_path / "out", base=str(tiny_model("gpt2")), progress=False)


@pytest.fixture
def beside(adapter, reference):
    """A model directory that also holds an adapter."""
    for path in adapter.iterdir():
        shutil.copy(path, reference)
    return reference


def test_a_model_that_transformers_would_load_with_an_adapter_is_not_loaded(beside, monkeypatch):
    with pytest.warns(UserWarning, match="not merged"):
        model = open_model(str(beside))
    monkeypatch.setattr(refusals, "find_spec", lambda name: name == "peft")
    for load in (model.load, lambda: load_model(beside)):
        with pytest.raises(UnsupportedModelError, match="since peft is installed") as refused:
            load()
    assert f"`inheritune convert {beside} OUT --base {beside}`" in refused.value.hint


def test_an_adapter_beside_a_model_is_said_not_to_be_merged(beside, tmp_path):
    reference = beside
    with pytest.warns(UserWarning, match="an adapter beside the model, which is not merged"):
        open_model(str(reference))
    with pytest.warns(UserWarning, match="not merged"):
        done = api.convert(reference, tmp_path / "out", base=str(reference), progress=False)
    assert done.check.startswith("complete")


@pytest.mark.parametrize("kind", ["Linear", "Conv1D", "Embedding"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_merged_weight_is_what_peft_merges(tmp_path, kind, dtype):
    """Of rsLoRA with rank 4 and alpha 6, see fixtures/of_libraries.py."""
    held = load_file(Path(__file__).parents[1] / "fixtures/of_libraries.safetensors")
    case = f"peft {kind} {dtype}."
    values = {n.removeprefix(case): value for n, value in held.items() if n.startswith(case)}
    expected = values.pop("expected")
    save_file(values, tmp_path / "one.safetensors")
    stored = {t.name: t for t in read_header(tmp_path / "one.safetensors")[0]}
    factors = Factors(stored["A"], stored["B"], 6 / 4**0.5, is_transposed=kind != "Linear")
    data = b"".join(values_of(Change(stored["before"], factors), stored["before"].dtype))
    merged = torch.frombuffer(bytearray(data), dtype=expected.dtype).reshape(expected.shape)
    assert not torch.equal(merged, values["before"])
    # Of a bf16 embedding, PEFT rounds the two factors and their product to bf16 as well.
    rounds = (kind, dtype) == ("Embedding", "bfloat16")
    within = {"rtol": 2**-5, "atol": 2**-5} if rounds else {"rtol": 1e-6, "atol": 1e-6}
    assert torch.allclose(merged.float(), expected.float(), **within)


def test_a_target_that_an_adapter_was_merged_into_grows_at_its_place(tiny_reference, tmp_path):
    cut = api.inherit(tiny_reference, "last:2", tmp_path / "cut", progress=False)
    adapter = write_adapter(tmp_path / "adapter", cut.path, pair(Q, 32, 32))
    merged = merge(adapter, tmp_path / "merged").model
    grown = api.grow(merged, tiny_reference, [1, 2, 3], tmp_path / "grown", progress=False)
    record = json.loads((grown.path / "inherit.json").read_text())
    assert record["grown_from"]["layer_map"] == [2, 3]
