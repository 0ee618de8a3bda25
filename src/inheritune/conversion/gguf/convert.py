"""Convert a GGUF file of llama.cpp to a safetensors model directory."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from inheritune import __version__
from inheritune.conversion.converted import (
    RECORD_FORMAT,
    Converted,
    Quantisation,
    check_converted,
    describe_file,
    refuse_place,
    write_index,
)
from inheritune.conversion.gguf.architectures import Architecture
from inheritune.conversion.gguf.config import architecture_of, rebuild_config
from inheritune.conversion.gguf.container import Container, Entry, read_container
from inheritune.conversion.gguf.metadata import CONFIG_FROM, SAFETENSORS
from inheritune.conversion.gguf.source_model import config_of, copy_tokenizer
from inheritune.conversion.gguf.tensors import pieces_of, small_tensor
from inheritune.conversion.gguf.tokenizer import left_out_keys, write_tokenizer
from inheritune.conversion.gguf.weights import narrowest_dtype, quantisation_of, write_weights
from inheritune.errors import RecipeError, SourceError, escape
from inheritune.model_files.card import join_front_matter
from inheritune.model_files.config import max_positions
from inheritune.model_files.copy import open_source
from inheritune.model_files.directory import open_model
from inheritune.model_files.safetensors import DTYPES, item_bits, read_header, torch_name
from inheritune.surgery.write import to_json
from inheritune.system.disk_space import refuse_full_disk
from inheritune.system.files import new_directory, write_bytes
from inheritune.system.progress import Listener, silent

_TIED = "the same as token_embd.weight, to which the config ties it"
_ELSEWHERE = "is a key of another program, without effect"
# Keys whose first part says that they describe the file or the model's origin.
_DESCRIBING = ("general", "tokenizer", "split", "quantize")


def convert_gguf(
    source: Path,
    out: Path,
    *,
    dtype: str | None = None,
    config_from: str | None = None,
    on_progress: Listener = silent,
) -> Converted:
    """Write the weights of a GGUF file as safetensors in the architecture's own names.

    Quantised weights are dequantised, and what llama.cpp changes is undone. Config and tokenizer
    are rebuilt from the file, or taken from the model that it was made from. The directory appears
    by one rename, after the model's class has confirmed that every weight is there. Its
    ``convert.json`` records the source. The same input gives the same bytes of weights.

    Args:
        source: A GGUF file on this machine.
        out: Must not exist, or be empty.
        dtype: fp32, bf16 or fp16; None: the narrowest that holds every value.
        config_from: Model directory or Hub id whose config and tokenizer are taken; the file must
            agree with them.
        on_progress: Called with the bytes written.

    Raises:
        SourceError: The file is broken, of an architecture that is not read, or holds what has no
            place in the model; or the model of ``config_from`` is another one.
        RecipeError: ``out`` is in use, or there is no such dtype.
        MissingExtraError: The weights are quantised, and the package gguf is not installed.
        MachineError: The disk is full or read-only.
    """
    # --- read what is small, refuse what can be refused ---
    if dtype is not None and dtype not in DTYPES:
        raise RecipeError(f"there is no dtype {escape(dtype)}.", "Choose fp32, bf16 or fp16.")
    refuse_place(out, source)
    container = read_container(source)
    architecture = architecture_of(container)
    container, dropped = _without_copied_head(container)
    quantisation = quantisation_of(container)
    config, dropped = _config(container, architecture, config_from, dropped)
    heads, kv_heads = _heads(container)
    pieces = pieces_of(container, architecture, heads, kv_heads)
    target_dtype = DTYPES[dtype] if dtype else narrowest_dtype(container, pieces)
    config["dtype"] = torch_name(target_dtype)
    config.pop("torch_dtype", None)
    values = sum(piece.entry.items for piece in pieces if not piece.first)
    bytes_needed = values * item_bits(target_dtype) // 8
    refuse_full_disk(
        out, bytes_needed, f"the weights of {out}", "Free some space, or pass --dtype."
    )

    # --- convert, check, record ---
    with new_directory(out) as staging:
        files, not_finite = write_weights(container, pieces, target_dtype, staging, on_progress)
        write_index({name: read_header(staging / name)[0] for name in files}, staging)
        write_bytes(staging / "config.json", to_json(config))
        if config_from is None:
            tokenizer = write_tokenizer(container, staging, max_positions(config) or 0)
        else:
            tokenizer = copy_tokenizer(config_from, container, staging)
        check = check_converted(open_model(str(staging)))
        warnings = _warnings(quantisation, not_finite)
        record: dict[str, Any] = {
            "format": RECORD_FORMAT,
            "inheritune": __version__,
            "source": {"name": source.name, "files": [describe_file(source)]},
            "architecture": container.architecture,
            "config_from": config_from,
            "dtype": target_dtype,
            "quantisation": quantisation.as_json() if quantisation else None,
            "dropped": dropped,
            "warnings": warnings,
            "check": check,
            "tokenizer": tokenizer,
        }
        write_bytes(staging / "convert.json", to_json(record))
        card = _card(container, source, quantisation, target_dtype)
        write_bytes(staging / "README.md", card.encode())
    model = open_model(str(out))
    return Converted(model, check, tokenizer, dropped, warnings, {}, quantisation)


def _config(
    container: Container,
    architecture: Architecture,
    config_from: str | None,
    dropped: Mapping[str, str],
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the config, and what of the file is in no file of the model."""
    prefix = container.architecture + "."
    dropped = dict(dropped) | left_out_keys(container)
    dropped |= {
        key: _ELSEWHERE
        for key in container.metadata
        if not key.startswith(prefix) and key.partition(".")[0] not in _DESCRIBING
    }
    try:
        config, unread = rebuild_config(
            container,
            architecture,
            partial(small_tensor, container),
            has_own_config=config_from is not None,
        )
    except SourceError as error:
        if config_from is None or error.hint != CONFIG_FROM:
            raise
        raise SourceError(error.message, SAFETENSORS) from error
    if config_from is not None:
        own = config_of(config_from, architecture, config)
        return own, dropped | dict.fromkeys(unread, "was not compared with the config")
    if unread:
        raise SourceError(
            f"the key {escape(unread[0])} is not understood, and may change what the model "
            "computes.",
            CONFIG_FROM,
        )
    return config, dropped


def _heads(container: Container) -> tuple[int, int]:
    """Read the heads from the file: a config of the source model may leave its defaults out."""
    key = f"{container.architecture}.attention.head_count"
    heads = int(container.metadata[key])
    return heads, int(container.metadata.get(f"{key}_kv", heads))


def _without_copied_head(container: Container) -> tuple[Container, dict[str, str]]:
    """Leave out an output head that is the embedding, byte for byte."""
    head, embedding = (container.tensors.get(f"{n}.weight") for n in ("output", "token_embd"))
    if head is None or embedding is None or not _same(container.path, head, embedding):
        return container, {}
    others = {name: entry for name, entry in container.tensors.items() if entry is not head}
    return Container(container.path, container.metadata, others), {head.name: _TIED}


def _same(path: Path, first: Entry, second: Entry) -> bool:
    if (first.type, first.shape) != (second.type, second.shape):
        return False
    chunk = 2**24
    with open_source(path) as file:
        for start in range(0, first.size, chunk):
            size = min(chunk, first.size - start)
            pieces = []
            for entry in (first, second):
                file.seek(entry.offset + start)
                pieces.append(file.read(size))
            if pieces[0] != pieces[1]:
                return False
    return True


def _warnings(quantisation: Quantisation | None, not_finite: list[str]) -> list[str]:
    warnings = []
    if quantisation and quantisation.is_coarse:
        warnings.append(
            f"the weights were quantised ({quantisation}): the quantised model is the reference "
            "now, not the model that it was made from."
        )
    if not_finite:
        warnings.append(
            f"NaN or infinity in {len(not_finite)} tensors, such as {not_finite[0]}: kept as they "
            "are."
        )
    return warnings


def _card(container: Container, source: Path, quantisation: Quantisation | None, dtype: str) -> str:
    """Write the model card: licence and languages of the file, and what was done to the weights."""
    front: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    for key, field in {
        "license": "general.license",
        "license_name": "general.license.name",
        "license_link": "general.license.link",
        "language": "general.languages",
    }.items():
        if isinstance(value := container.metadata.get(field), str | list):
            front[key] = value
    name = escape(container.metadata.get("general.name", source.stem), 200).replace("`", "'")
    file = escape(source.name, 200).replace("`", "'")
    lines = ["", f"# `{name}`", ""]
    lines.append(f"Converted by inheritune from the GGUF file `{file}`, in {dtype}.")
    if quantisation:
        types = ", ".join(f"{count} tensors {kind}" for kind, count in quantisation.tensors.items())
        lines[-1] += (
            f" Its weights were quantised: {types}; {quantisation.bits_per_weight:.2f} bits per "
            "weight. They are dequantised here."
        )
    if quantisation and quantisation.is_coarse:
        lines[-1] += " This is the quantised model, not the one that it was made from."
    lines += ["", "`convert.json` names the file by its digest.", ""]
    return join_front_matter(front, "\n".join(lines))
