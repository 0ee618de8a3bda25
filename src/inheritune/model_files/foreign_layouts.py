"""Recognise models in other programs' layouts by the names of their files, each with its way out.

The one table behind what `inherit`, `plan` and `convert` say of a directory without
``model.safetensors``; docs/generate.py makes a page of it.
"""

import re
import shlex
from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from inheritune.errors import SourceError, UnsupportedModelError, escape, visible

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
"""Endings of pickled weights."""

# Beginnings of files that trainers leave beside the weights, and of what is no whole model.
_NOT_WEIGHTS = (
    *("training_args", "optimizer", "scheduler", "scaler", "rng_state", "random_states"),
    *("trainer_state", "adapter_", "early_stopping", "sampler"),
)
_SHARD = re.compile(r"(.*)-([0-9]{1,6})-of-([0-9]{1,6})(\.\w+)")
_COPY = "copy config.json and the tokenizer's files to OUT"


@dataclass(frozen=True)
class Layout:
    """A layout that is not read as it is."""

    what: str  # predicate of a directory that has it; may hold ``{sign}``
    signs: tuple[str, ...]  # patterns of names, one is enough; a directory's name ends with "/"
    # Sentences; may hold ``{here}`` and ``{path}`` (the directory, quoted for a shell and not),
    # ``{above}`` and ``{name}`` (its parent and its name), ``{sign}`` (the name that matched a
    # pattern), ``{inside}`` and ``{newest}`` (the newest that matches ``inside``, quoted and not).
    way_out: str
    inside: str = ""
    converts: bool = False  # `convert` reads it


_PICKLED = "holds {sign}, but only safetensors are read: a pickle can run code"
_CONVERT = (
    "Look for a safetensors revision of the model, or make one of a model that you trust: "
    "`inheritune convert {here} OUT`."
)
ADAPTER = Layout(
    "is a LoRA adapter of PEFT, not a model",
    ("adapter_config.json",),
    "Merge it into its base model: `inheritune convert {here} OUT`; a base in a directory, "
    "or elsewhere than the adapter says, is named with --base.",
    converts=True,
)
LAYOUTS = (
    ADAPTER,
    Layout(
        _PICKLED, ("pytorch_model.bin", "pytorch_model.bin.index.json"), _CONVERT, converts=True
    ),
    Layout(
        "is a checkpoint of DeepSpeed, its weights spread over processes ({sign})",
        ("zero_to_fp32.py", "global_step*/"),
        "Gather them: `python -m deepspeed.utils.zero_to_fp32 {here} OUT --safe_serialization`, "
        f"{_COPY}, and use OUT.",
    ),
    Layout(
        "is one step of a checkpoint of DeepSpeed, its weights spread over processes ({sign})",
        ("*_model_states.pt", "*_optim_states.pt"),
        "Gather them: `python -m deepspeed.utils.zero_to_fp32 {above} OUT --tag {name} "
        f"--safe_serialization`, {_COPY}, and use OUT.",
    ),
    Layout(
        "is a checkpoint of FSDP, its weights spread over processes ({sign})",
        ("pytorch_model_fsdp_*/", "*.distcp"),
        f"Gather them: `accelerate merge-weights {{inside}} OUT`, {_COPY}, and use OUT.",
        inside="pytorch_model_fsdp_*",
    ),
    Layout(
        "is a checkpoint of litgpt, with names of its own ({sign})",
        ("lit_model.pth",),
        f"Rename them: `litgpt convert_from_litgpt {{here}} OUT`, {_COPY}, then `inheritune "
        "convert OUT NEW`.",
    ),
    Layout(
        "holds {sign}, what litgpt trained by LoRA, and no weights of the whole model",
        ("lit_model.pth.lora",),
        "Merge it into its base: `litgpt merge_lora {here}` writes lit_model.pth there; then ask "
        "again.",
    ),
    Layout(
        "is a checkpoint of litgpt, its weights spread over processes ({sign})",
        ("lit_model.pth/",),
        "Gather them: `fabric consolidate {here}/{sign}`, and put the file that it writes into a "
        "directory of its own, as lit_model.pth, with all other files; then ask again.",
    ),
    Layout(
        "is a checkpoint of Megatron ({sign})",
        ("latest_checkpointed_iteration.txt", "iter_*/"),
        "Export it with Megatron Bridge, ID being the Hub's model of the same architecture: `from "
        "megatron.bridge import AutoBridge; AutoBridge.from_hf_pretrained(ID)"
        '.export_ckpt({newest!r}, "OUT")`, and use OUT.',
        inside="iter_*",
    ),
    Layout(
        "holds {sign}, a model of NeMo 1",
        ("*.nemo",),
        "Convert it with the script for its architecture that NeMo has in "
        "scripts/checkpoint_converters, such as `python convert_llama_nemo_to_hf.py "
        f"--input_name_or_path {{here}}/{{sign}} --output_path OUT/pytorch_model.bin`, {_COPY}, "
        "then `inheritune convert OUT NEW`.",
    ),
    Layout(
        "holds {sign}, the layout of Meta's or Mistral's own code",
        ("consolidated*.pth", "consolidated*.safetensors", "meta_model_*.pt"),
        "Use the same model in Hugging Face's layout: config.json and model.safetensors, which the "
        "Hub has beside it.",
    ),
    Layout(
        "holds the GGUF file {sign}, but only safetensors are read",
        ("*.gguf",),
        "Use the safetensors repository it was made from, or convert the file: "
        "`inheritune convert {here}/{sign} OUT`.",
    ),
    Layout(
        "holds {sign}, weights of an old MLX",
        ("*.npz",),
        "Use the safetensors repository that it was made from.",
    ),
    Layout(
        "holds {sign}, a checkpoint of TensorFlow",
        ("*.ckpt.index", "*.ckpt.meta", "*.ckpt.data-*", "saved_model.pb", "tf_model.h5", "*.h5"),
        "Use another revision, or write safetensors with transformers 4: "
        "`AutoModelForCausalLM.from_pretrained({path!r}, from_tf=True)"
        '.save_pretrained("OUT")`.',
    ),
    Layout(_PICKLED, tuple(f"*{ending}" for ending in PICKLES), _CONVERT, converts=True),
    Layout(
        "holds its weights as {sign}, neither model.safetensors nor with an index",
        ("*.safetensors",),
        "Collect them under the usual names: `inheritune convert {here} OUT`.",
        converts=True,
    ),
    Layout(
        "holds checkpoints of a training, and no model itself",
        ("checkpoint-*/",),
        "Name one of them, such as {inside}.",
        inside="checkpoint-*",
    ),
    Layout(
        "is an entry of the Hub's cache, not a model directory",
        ("snapshots/",),
        "Name the snapshot in it, {inside}, or the model's Hub id.",
        inside="snapshots/*",
    ),
    Layout(
        "is a part of an entry of the Hub's cache, not a model directory",
        ("[0-9a-f]" * 40 + "/",),
        "Name the snapshot in it, {inside}, or the model's Hub id.",
        inside="*",
    ),
    Layout(
        "holds {sign}, weights of another framework only",
        (
            *("*.msgpack", "*.onnx", "onnx/", "openvino_model.xml", "*.tflite", "*.ot"),
            *("*.mlpackage/", "*.engine", "*.mlmodel"),
        ),
        "Use a revision or repository of the model with safetensors.",
    ),
    Layout(
        "holds {sign}, which a training leaves beside the weights, but no weights",
        tuple(f"{name}*" for name in _NOT_WEIGHTS),
        "Name the directory that the trainer's save_model wrote.",
    ),
)
"""Layouts that are not read, the most specific first."""


def pickled_weights(names: Collection[str]) -> list[str]:
    """List the files that may be pickled weights, by their names; sorted."""
    return sorted(n for n in names if n.endswith(PICKLES) and _may_be_weights(n))


def plain_weights(names: Collection[str]) -> list[str]:
    """List the safetensors files that may be a model's weights, by their names; sorted."""
    return sorted(n for n in names if n.endswith(".safetensors") and _may_be_weights(n))


def refuse_incomplete(files: Collection[str], directory: Path) -> None:
    """Refuse files such as ``model-00001-of-00002.safetensors`` without all that belong to them."""
    numbers: dict[tuple[str, str, str], set[int]] = {}
    for name in files:
        if found := _SHARD.fullmatch(name):
            numbers.setdefault((found[1], found[3], found[4]), set()).add(int(found[2]))
    for (stem, count, ending), held in numbers.items():
        if len(held) < int(count):
            raise SourceError(
                f"{directory} holds {len(held)} of the {int(count)} files "
                f"{escape(stem)}-...-of-{count}{ending}.",
                "Download the others, too.",
            )


def is_shard(name: str) -> bool:
    """Tell whether a file is one of several by its name."""
    return _SHARD.fullmatch(name) is not None


def _may_be_weights(name: str) -> bool:
    return not name.startswith(_NOT_WEIGHTS)


def names_in(directory: Path) -> set[str]:
    """Return the names in a directory; those of directories end with a slash."""
    return {f"{path.name}/" if path.is_dir() else path.name for path in directory.iterdir()}


def find_layout(names: Collection[str]) -> tuple[Layout, str] | None:
    """Find the layout of a directory without ``model.safetensors``, and a name that shows it."""
    # Of a repository on the Hub, whole paths are given.
    here = {f"{n.partition('/')[0]}/" if "/" in n else n for n in names}
    for layout in LAYOUTS:
        found = sorted(n for n in here if any(fnmatchcase(n, sign) for sign in layout.signs))
        if layout.converts and layout is not ADAPTER:
            found = [name for name in found if _may_be_weights(name)]
        if found:
            return layout, found[0]
    return None


def refusal(layout: Layout, sign: str, directory: str) -> UnsupportedModelError:
    """Word the refusal of a directory, local or on the Hub, in a layout that is not read."""
    path = Path(directory)
    is_local = path.is_dir()
    here = directory if is_local else "DIR"
    newest = max(path.glob(layout.inside), key=_age, default=None) if layout.inside else None
    words = {"path": here, "sign": escape(sign.rstrip("/")), "inside": visible(str(newest or here))}
    in_shell = {name: shlex.quote(word) for name, word in words.items()}
    whole = Path(here).absolute()
    in_shell |= {"here": in_shell["path"], "path": here, "newest": words["inside"]}
    in_shell |= {"above": shlex.quote(str(whole.parent)), "name": shlex.quote(whole.name)}
    way_out = layout.way_out.format(**in_shell)
    if not is_local and "DIR" in way_out:
        way_out = f"Get it with `hf download {directory} --local-dir DIR`. {way_out}"
    return UnsupportedModelError(f"{directory} {layout.what.format(**words)}.", way_out)


def _age(path: Path) -> tuple[int, float]:
    """Order checkpoints by their number, and snapshots by their time."""
    number = path.name.removeprefix("checkpoint-").removeprefix("iter_")
    return int(number) if number.isdecimal() else -1, path.lstat().st_mtime
