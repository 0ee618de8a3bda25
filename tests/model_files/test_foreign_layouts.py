"""Directories of other programs are called by their name, with the same way out everywhere."""

import pytest

from inheritune.conversion.convert import convert
from inheritune.errors import SourceError, UnsupportedModelError
from inheritune.model_files.addresses import missing_directory
from inheritune.model_files.directory import open_model
from inheritune.model_files.foreign_layouts import LAYOUTS, find_layout
from inheritune.planning.planned_reference import open_to_plan

LEFT = ["rng_state_0.pth", "scheduler.pt", "training_args.bin", "config.json"]
DEEPSPEED = ["latest", "zero_to_fp32.py", "global_step500/mp_rank_00_model_states.pt", *LEFT]
FSDP = ["pytorch_model_fsdp_0/__0_0.distcp", "pytorch_model_fsdp_0/.metadata", *LEFT]
COMMIT = "a" * 40


@pytest.mark.parametrize(
    ("files", "what", "way_out"),
    [
        (DEEPSPEED, "DeepSpeed", "deepspeed.utils.zero_to_fp32 {here} OUT --safe_serialization"),
        (FSDP, "FSDP", "`accelerate merge-weights {here}/pytorch_model_fsdp_0 OUT`"),
        (["lit_model.pth", "model_config.yaml"], "litgpt", "`litgpt convert_from_litgpt {here}"),
        (["lit_model.pth.lora", "config.json"], "by LoRA", "`litgpt merge_lora {here}` writes"),
        (["consolidated.00.pth", "params.json"], "Meta's", "in Hugging Face's layout"),
        (["consolidated.safetensors", "params.json"], "Mistral's", "in Hugging Face's layout"),
        (["tiny.Q4_K_M.gguf"], "GGUF", "`inheritune convert {here}/tiny.Q4_K_M.gguf OUT`"),
        (["weights.npz", "config.json"], "MLX", "safetensors repository"),
        (["tf_model.h5", "config.json"], "TensorFlow", "from_tf=True"),
        (["flax_model.msgpack", "config.json"], "another framework", "with safetensors"),
        (["lit_model.pth/x.distcp"], "litgpt", "`fabric consolidate {here}/lit_model.pth`"),
        (
            ["mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"],
            "one step of a checkpoint of DeepSpeed",
            "zero_to_fp32 {here.parent} OUT --tag {here.name} --safe_serialization`",
        ),
        (
            ["latest_checkpointed_iteration.txt", "iter_0000500/x", "iter_0001000/x"],
            "Megatron",
            "export_ckpt('{here}/iter_0001000', \"OUT\")`",
        ),
        (["llama.nemo"], "NeMo 1", "--input_name_or_path {here}/llama.nemo --output_path OUT/"),
        (
            ["checkpoint-500/config.json", "checkpoint-1000/config.json", "trainer_state.json"],
            "checkpoints of a training",
            "{here}/checkpoint-1000.",
        ),
        (["training_args.bin", "config.json"], "no weights", "save_model"),
        ([f"snapshots/{COMMIT}/x", "blobs/0"], "Hub's cache", "{here}/snapshots/" + COMMIT),
        ([f"{COMMIT}/x"], "Hub's cache", "{here}/" + COMMIT),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_foreign_layout_is_answered_alike_by_inherit_plan_and_convert(
    tmp_path, files, what, way_out
):
    source = tmp_path / "source"
    for name in files:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(b"{}")
    said = set()
    for attempt in (open_model, open_to_plan, lambda path: convert(source, tmp_path / "out")):
        with pytest.raises(SourceError, match=what) as refused:
            attempt(str(source))
        assert way_out.format(here=source) in refused.value.hint
        said.add(str(refused.value))
    assert len(said) == 1
    assert not (tmp_path / "out").exists()


# Each starts a process.
@pytest.mark.parametrize(
    "name",
    [
        "last.ckpt",
        pytest.param("model.pth", marks=pytest.mark.slow),
        pytest.param("pytorch_model.bin", marks=pytest.mark.slow),
    ],
)
def test_what_convert_reads_is_sent_there_and_not_back(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK\x03\x04")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SourceError, match="only safetensors are read") as refused:
        open_model(str(tmp_path))
    assert f"`inheritune convert {tmp_path} OUT`" in refused.value.hint
    with pytest.raises(SourceError, match="cut short"):
        convert(tmp_path, tmp_path.parent / "out")


def test_only_layouts_that_convert_reads_are_sent_to_it():
    for layout in LAYOUTS:
        sends = "inheritune convert {here} OUT" in layout.way_out
        assert sends == layout.converts, layout.what


def test_files_of_a_repository_on_the_hub_are_named_by_their_paths():
    layout, sign = find_layout(["config.json", "checkpoint-500/model.safetensors"]) or (None, "")
    assert layout is not None and "checkpoints of a training" in layout.what
    assert sign == "checkpoint-500/"


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("https://huggingface.co/acme/tiny", "write its id alone: acme/tiny."),
        ("https:/huggingface.co/acme/tiny", "write its id alone: acme/tiny."),
        ("https://huggingface.co/acme/tiny/tree/v1", "write acme/tiny and --revision v1"),
        ("https://huggingface.co/acme/tiny/resolve/v1/x.bin", "acme/tiny and --revision v1"),
        ("hf://acme/tiny", "write its id alone: acme/tiny."),
        ("hf://models/acme/tiny@v1", "write acme/tiny and --revision v1"),
        ("acme/tiny@v1", "write acme/tiny and --revision v1"),
        ("acme/tiny:v1", "write acme/tiny and --revision v1"),
        ("acme/tiny/", "write its id alone: acme/tiny."),
        ("acme/tiny/sub", "The Hub's id is acme/tiny; a folder below it"),
        ("/no/where", ""),
        ("./no", ""),
    ],
)
def test_an_address_is_answered_with_the_id_in_it(address, words):
    with pytest.raises(SourceError, match="there is no model directory") as refused:
        open_model(address)
    assert refused.value.message == f"there is no model directory {address}."
    assert words in refused.value.hint
    assert str(missing_directory(address)) == str(refused.value)


@pytest.mark.parametrize("name", ["tiny.gguf", "sha256-abc"])
def test_a_gguf_file_is_sent_to_convert_whatever_its_name(tmp_path, name):
    (tmp_path / name).write_bytes(b"GGUF\3\0\0\0")
    with pytest.raises(UnsupportedModelError, match="is a GGUF file") as refused:
        open_model(str(tmp_path / name))
    assert f"`inheritune convert {tmp_path / name} OUT`" in refused.value.hint


def test_an_empty_name_is_no_directory():
    for name in ("", " "):
        with pytest.raises(SourceError, match="name of the model is empty"):
            open_model(name)
