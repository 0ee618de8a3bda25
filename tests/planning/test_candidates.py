"""Numbers to choose by, told from headers and config."""

import json
import shutil
import subprocess
import sys
from itertools import cycle, islice

import pytest
import sparse_model
import tiny_models
import torch
from safetensors.torch import load_file, save_file

from inheritune.errors import RecipeError, SourceError
from inheritune.model_files.directory import open_model
from inheritune.planning.candidates import Budget, list_candidates, plan_cut
from inheritune.surgery.cut import inherit
from inheritune.surgery.sizes import Sizes
from inheritune.system.devices import DEVICES, Speed, choose_device, peak_of, this_processor
from inheritune.training.models import describe


@pytest.fixture(scope="module")
def sparse(tmp_path_factory):
    root = tmp_path_factory.mktemp("sparse")
    write = sparse_model.write_sparse
    return {
        "llama": write(root / "llama", sparse_model.LLAMA_8B, sparse_model.llama_8b(), files=4),
        "mixtral": write(root / "mixtral", sparse_model.MIXTRAL, sparse_model.mixtral(), files=19),
        "deepseek": write(
            root / "deepseek", sparse_model.DEEPSEEK_V3, sparse_model.deepseek_v3(), files=163
        ),
    }


def table_of(directory, **budget):
    return list_candidates(open_model(str(directory)), Budget(**budget))


def by_layers(table):
    return {candidate.layers: candidate for candidate in table.candidates}


# ----------------------------------------------------------------------- parameters and FLOPs


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_counts_are_those_of_the_models_own_class(family, tiny_model, tmp_path):
    directory = tiny_model(family)
    reference = open_model(str(directory))
    sizes = Sizes(reference)
    for layers in (1, reference.layers):
        target = inherit(reference, layers, tmp_path / str(layers))
        counts, shape = sizes.counts(range(layers), 64), describe(target.path, 64)
        assert (counts.params, counts.flops_per_token) == (shape.params, shape.flops_per_token)
        assert counts.bytes == sum(tensor.size for tensor in target.tensors.values())


def test_a_tied_head_that_the_files_hold_as_well_counts_once(tmp_path):
    from safetensors.torch import load_file, save_file

    directory = tiny_models.save("llama-tied", tmp_path / "tied")
    held = load_file(directory / "model.safetensors")
    twice = held | {"lm_head.weight": held["model.embed_tokens.weight"].clone()}
    before = Sizes(open_model(str(directory))).counts(range(4), 64)
    save_file(twice, directory / "model.safetensors", {"format": "pt"})
    after = Sizes(open_model(str(directory))).counts(range(4), 64)
    assert (after.params, after.flops_per_token) == (before.params, before.flops_per_token)
    assert after.bytes == before.bytes + twice["lm_head.weight"].numel() * 4


def test_buffers_of_old_files_are_no_parameters(tmp_path):
    from safetensors.torch import load_file, save_file

    directory = tiny_models.save("gpt2", tmp_path / "gpt2")
    before = Sizes(open_model(str(directory))).counts(range(4), 64).params
    held = load_file(directory / "model.safetensors")
    for i in range(4):
        held[f"transformer.h.{i}.attn.bias"] = torch.ones(1, 1, 128, 128)
        held[f"transformer.h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(held, directory / "model.safetensors", {"format": "pt"})
    assert Sizes(open_model(str(directory))).counts(range(4), 64).params == before


@pytest.mark.parametrize(
    ("name", "params", "active"),
    [
        ("llama", 8_030_261_248, 8_030_261_248),
        ("mixtral", 46_702_792_704, 12_879_925_248),
        ("deepseek", 671_026_404_352, 671_026_404_352 - 58 * 248 * 3 * 2048 * 7168),
    ],
)
def test_published_models_have_the_parameters_they_are_known_for(sparse, name, params, active):
    whole = table_of(sparse[name]).candidates[-1].counts
    assert (whole.params, whole.active) == (params, active)


def test_flops_of_experts_count_those_that_a_token_is_sent_to(sparse):
    whole = table_of(sparse["mixtral"], seq_len=1024).candidates[-1].counts
    multiplied = whole.active - 32000 * 4096
    assert whole.flops_per_token == 6 * multiplied + 6 * 32 * 4096 * 1024


# ------------------------------------------------------------------------------------- cache


@pytest.mark.parametrize(
    ("name", "bytes_per_token"),
    [
        ("llama", 2 * 8 * 128 * 2 * 32),  # keys and values of 8 heads of 128, bf16, 32 layers
        ("deepseek", (512 + 64) * 2 * 61),  # the latent and the rotated part
    ],
)
def test_the_cache_of_grouped_and_latent_attention(sparse, name, bytes_per_token):
    assert table_of(sparse[name]).candidates[-1].cache.bytes_per_token == bytes_per_token


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt-neox", "opt", "gemma3", "mixtral"])
def test_the_cache_is_as_large_as_the_one_that_transformers_fills(family, tiny_model):
    directory = tiny_model(family)
    model = tiny_models.build(family)
    with torch.no_grad():
        cache = model(torch.zeros(1, 4, dtype=torch.long), use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert table_of(directory).candidates[-1].cache.bytes_per_token == held / 4


def test_windowed_layers_keep_nothing_more_once_their_window_is_full(tiny_model):
    cache = table_of(tiny_model("gemma3")).candidates[-1].cache
    one_layer = 2 * 2 * 8 * 4
    assert cache.bytes_per_token == 7 * one_layer
    assert cache.bytes_beyond_window == one_layer  # every sixth layer sees everything
    assert cache.window == 8


def test_recurrent_layers_keep_a_state_of_fixed_size(tmp_path):
    from transformers import JambaConfig, JambaForCausalLM, Mamba2Config, Mamba2ForCausalLM

    mamba = Mamba2Config(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_heads=4, head_dim=16,
        state_size=8, n_groups=1,
    )  # fmt: skip
    Mamba2ForCausalLM(mamba).save_pretrained(tmp_path / "mamba2")
    whole = table_of(tmp_path / "mamba2").candidates[-1]
    assert whole.cache.bytes_per_token == 0
    jamba = JambaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=8,
        num_attention_heads=4, num_key_value_heads=2, num_experts=2, mamba_d_state=4,
        use_mamba_kernels=False, attn_layer_period=4, attn_layer_offset=2,
    )  # fmt: skip
    JambaForCausalLM(jamba).save_pretrained(tmp_path / "jamba")
    table = by_layers(table_of(tmp_path / "jamba"))
    assert table[8].cache.bytes_per_token == 2 * (2 * 2 * 8 * 4)  # layers 2 and 6
    assert table[4].cache.bytes_per_token == 2 * 2 * 8 * 4
    assert not table[2].cut.allowed  # no attention among them
    assert table[8].counts.flops_per_token == describe(tmp_path / "jamba", 2048).flops_per_token


# --------------------------------------------------------------------------------- cut points


def test_a_cut_is_safe_where_a_whole_pattern_ends(tmp_path):
    # Every fourth layer has no rotation.
    tiny_models.build("smollm3", num_hidden_layers=10).save_pretrained(tmp_path / "ten")
    table = table_of(tmp_path / "ten")
    assert [c.layers for c in table.candidates if c.cut.is_safe] == [4, 8, 10]
    assert by_layers(table)[5].cut.reason == "the last pattern has 1 of its 4 layers"
    assert table.pattern == "layers come in a pattern of 4"


def test_alternating_and_windowed_layers_are_patterns_too(tiny_model):
    safe = [c.layers for c in table_of(tiny_model("gpt-neo")).candidates if c.cut.is_safe]
    assert safe == [2, 4]


def test_dense_layers_before_those_with_experts_are_no_pattern_of_their_own(sparse):
    table = table_of(sparse["deepseek"])
    assert table.pattern == "3 layers of their own, the others alike"
    assert plan_cut(open_model(str(sparse["deepseek"])), "3").candidate.cut.complete is False


def test_a_cut_that_the_config_does_not_allow_is_refused_with_the_reason(tmp_path):
    shapes = sparse_model.llama_8b()
    config = sparse_model.LLAMA_8B | {"model_type": "gemma4_text"}
    kinds = list(islice(cycle(["sliding_attention"] * 3 + ["full_attention"]), 32))
    sparse_model.write_sparse(tmp_path / "x", config | {"layer_types": kinds}, shapes)
    table = table_of(tmp_path / "x")
    assert [c.layers for c in table.candidates] == [4, 8, 12, 16, 20, 24, 28, 32]
    with pytest.raises(SourceError, match="last layer one of full attention"):
        plan_cut(open_model(str(tmp_path / "x")), "5")


def test_up_to_twelve_layers_all_are_shown_and_of_more_a_choice_with_half_and_all(
    tiny_model, sparse
):
    assert [c.layers for c in table_of(tiny_model("llama")).candidates] == [1, 2, 3, 4]
    table = table_of(sparse["llama"])
    assert [c.layers for c in table.candidates] == [4, 8, 12, 16, 20, 24, 28, 32]
    assert [c.layers for c in table.candidates if c.is_paper_default] == [16]
    assert 30 in by_layers(table_of(sparse["deepseek"]))


# ------------------------------------------------------------------------------------- detail


def test_a_candidate_in_detail_is_what_inherit_then_writes(tiny_model, tmp_path):
    reference = open_model(str(tiny_model("gemma3")))
    detail = plan_cut(reference, "4")
    target = inherit(reference, 4, tmp_path / "target")
    record = json.loads((tmp_path / "target" / "inherit.json").read_text())
    assert [(e.key, e.after) for e in detail.edits] == [
        (e["key"], e["after"]) for e in record["config_edits"]
    ]
    assert sum(detail.shards.values()) == sum(t.size for t in target.tensors.values())
    assert detail.kept == (0, 1, 2, 3)
    assert (
        detail.check == record["check"] == "complete: Gemma3ForCausalLM, layers as in the reference"
    )


def test_neighbours_are_one_range_and_prediction_layers_are_named(sparse):
    whole = plan_cut(open_model(str(sparse["llama"])), "32")
    assert whole.ranges == 4  # one for each file
    detail = plan_cut(open_model(str(sparse["deepseek"])), "30")
    assert len(detail.dropped_prediction) == 785
    assert {e.key for e in detail.edits} == {"num_hidden_layers", "num_nextn_predict_layers"}
    assert all(size <= 5e9 for size in detail.shards.values())


def test_the_class_is_asked_where_layers_move(tiny_model):
    detail = plan_cut(open_model(str(tiny_model("llama"))), "last:2")
    assert detail.kept == (2, 3)
    assert detail.check.startswith("complete: LlamaForCausalLM")


def test_a_cut_that_the_class_refuses_is_refused_by_the_plan_in_the_same_words(reference, tmp_path):
    held = load_file(reference / "model.safetensors")
    del held["model.norm.weight"]
    save_file(held, reference / "model.safetensors", {"format": "pt"})
    model = open_model(str(reference))
    with pytest.raises(SourceError) as planned:
        plan_cut(model, "2")
    with pytest.raises(SourceError) as cut:
        inherit(model, 2, tmp_path / "out")
    assert str(planned.value) == str(cut.value)


@pytest.mark.parametrize("layers", ["0", "5", "-1", "x", "first:9", "1.5"])
def test_layers_that_the_reference_does_not_have_are_refused(layers, tiny_model):
    with pytest.raises(RecipeError) as error:
        plan_cut(open_model(str(tiny_model("llama"))), layers)
    assert error.value.exit_code == 2
    assert error.value.hint


def test_candidates_and_cuts_are_json_values(tiny_model):
    reference = open_model(str(tiny_model("mixtral")))
    budget = Budget(tokens=10**9, speed=Speed(DEVICES["h100"], rate=2.0))
    said = json.loads(json.dumps(list_candidates(reference, budget).as_json(), allow_nan=False))
    assert said["candidates"][1]["paper_default"] is True
    assert said["candidates"][0]["active"] < said["candidates"][0]["params"]
    detail = json.loads(json.dumps(plan_cut(reference, "2", budget).as_json(), allow_nan=False))
    assert detail["edits"][0]["key"] == "num_hidden_layers"


# --------------------------------------------------------------------------------------- time


def test_hours_and_dollars_follow_from_the_peak_and_the_share_of_it(sparse):
    speed = Speed(DEVICES["a100"], count=8, mfu=0.5, rate=2.0)
    candidate = by_layers(table_of(sparse["llama"], tokens=10**9, speed=speed))[16]
    seconds = candidate.counts.flops_per_token * 1e9 / (312e12 * 0.5 * 8)
    assert candidate.training.hours == pytest.approx(seconds / 3600)
    assert candidate.training.device_hours == pytest.approx(8 * seconds / 3600)
    assert candidate.training.dollars == pytest.approx(16 * seconds / 3600)


def test_an_unknown_device_is_refused_with_the_list():
    with pytest.raises(RecipeError, match="'h1000'") as error:
        choose_device("h1000")
    assert "h100, " in error.value.hint and "cpu" in error.value.hint
    assert choose_device("RTX4090").name == "rtx4090"


@pytest.mark.parametrize("wrong", [{"count": 0}, {"mfu": 0.0}, {"mfu": 1.5}, {"rate": -1.0}])
def test_speeds_that_cannot_be_are_refused(wrong):
    with pytest.raises(RecipeError):
        Speed(DEVICES["h100"], **wrong)


def test_the_processor_is_judged_by_its_clock_and_registers(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("cpu MHz\t\t: 2000.0\nflags\t\t: sse2 fma avx2\n")
    avx2 = this_processor(cpuinfo).peak_flops
    cpuinfo.write_text("cpu MHz\t\t: 2000.0\nflags\t\t: fma avx2 avx512f\n")
    assert this_processor(cpuinfo).peak_flops == 2 * avx2
    assert this_processor(tmp_path / "missing").peak_flops > 0


# ------------------------------------------------------------------------- without any weights


def test_a_plan_loads_neither_torch_nor_transformers_and_is_quick(sparse):
    program = (
        "import sys, time\n"
        "began = time.process_time()\n"
        "from inheritune.model_files.directory import open_model\n"
        "from inheritune.planning.candidates import Budget, list_candidates, plan_cut\n"
        "from inheritune.cli.plan_text import candidates_table, cut_table\n"
        f"reference = open_model({str(sparse['llama'])!r})\n"
        "candidates_table(list_candidates(reference))\n"
        "cut_table(plan_cut(reference, '16'))\n"
        "heavy = {'torch', 'transformers'} & sys.modules.keys()\n"
        "print(sorted(heavy), time.process_time() - began)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    loaded, _, seconds = done.stdout.partition("] ")
    assert loaded == "[", done.stdout + done.stderr
    assert float(seconds) < 2  # of processor time; 0.3 s on an idle machine


def test_shared_model_of_five_layers(shared_data, tmp_path):
    directory = shutil.copytree(shared_data / "checkpoints" / "stories260K", tmp_path / "s")
    table = table_of(directory)
    assert table.seq_len == 512
    assert table.candidates[-1].counts.params == describe(directory, 512).params == 260_032


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A100 80GB PCIe", "a100"),
        ("Tesla V100-SXM2-32GB", "v100"),
    ],
)
def test_a_gpu_is_known_by_the_name_of_its_driver(title: str, name: str) -> None:
    assert peak_of(title) == DEVICES[name].peak_flops


@pytest.mark.parametrize(
    "title", ["NVIDIA H100 NVL", "NVIDIA GH200 480GB", "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "A10G"]
)
def test_a_slower_part_of_a_known_name_has_no_known_peak(title: str) -> None:
    assert peak_of(title) is None
