"""Convert a PyTorch checkpoint to a safetensors model directory."""

import os
import re
import shutil
import stat
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from inheritune import __version__
from inheritune.conversion.confinement import Limits
from inheritune.conversion.converted import (
    RECORD_FORMAT,
    Converted,
    check_converted,
    describe_file,
    refuse_place,
    write_index,
)
from inheritune.conversion.pytorch_files import find_pytorch_files
from inheritune.conversion.sandbox import ask
from inheritune.errors import SourceError, escape
from inheritune.model_files.copy import copy_side_files
from inheritune.model_files.directory import open_model
from inheritune.model_files.quantisation import without_leftover
from inheritune.model_files.refusals import refuse_unsafe_config, refuse_unsupported_type
from inheritune.model_files.safe_path import safe_file
from inheritune.model_files.safetensors import Tensor, read_header
from inheritune.model_files.weight_index import disagreements
from inheritune.model_files.wrappers import unwrapped
from inheritune.model_files.write import MAX_SHARD_BYTES
from inheritune.surgery.origin import cut_facts
from inheritune.surgery.write import to_json
from inheritune.system.files import new_directory, write_bytes
from inheritune.system.strict_json import MODEL_FILE, read_json_object

_SHARD = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
_SECONDS = 300  # for starting torch, on a slow disk
_SLOWEST_BYTES_PER_S = 4_000_000


def convert(source: Path, out: Path) -> Converted:
    """Write the PyTorch weights of a model directory as safetensors, bit for bit.

    torch reads the pickles with ``weights_only=True``, file by file, in a confined process (see
    `sandbox`). Config and side files are copied byte for byte. The directory appears by one rename,
    after every tensor was compared with its pickle and the model's class has confirmed that every
    weight is there. Its ``convert.json`` records the sources. The same input gives the same bytes.

    Args:
        source: Local model directory with ``pytorch_model.bin``, or with an index and its files.
        out: Must not exist, or be empty.

    Raises:
        SourceError: The files are broken or unsafe, hold more than plain tensors, or lack some of
            the model's.
        RecipeError: ``out`` is used already, or lies in ``source``.
        MachineError: The disk is full or read-only, or the memory too small for a file.
    """
    # --- refuse what can be refused before anything is read ---
    pickles, places = find_pytorch_files(source)
    path = safe_file(source, "config.json")
    config = read_json_object(path, MODEL_FILE, "the config")
    # What it says of quantised weights may be left over; the process that unpickles sees them.
    plain, left_out = without_leftover(config)
    refuse_unsafe_config(plain, path)
    refuse_unsupported_type(plain, source)
    refuse_place(out, source)
    before = _signatures(pickles)

    # --- convert, check, record ---
    with new_directory(out) as staging:
        reply = _unpickle(pickles, config, staging)
        if places:
            pairs = zip(pickles, reply["sources"], strict=True)
            by_file = {name: file.name for file, names in pairs for name in names}
            names, _ = unwrapped(places, lightning=True)
            by_index = {names[name]: file for name, file in places.items()}
            found = disagreements(by_index, by_file, by_file.keys() & by_index)
            reply["warnings"] += [f"the weight index {text}." for text in found]
        _take_weights(reply, staging)
        write_bytes(staging / "config.json", to_json(plain) if left_out else path.read_bytes())
        copy_side_files(source, staging)
        check = check_converted(open_model(str(staging)))
        tokenizer = _check_tokenizer(staging)
        warnings = _warnings(reply, tokenizer)
        if left_out:
            entries = ", ".join(left_out)
            warnings.append(f"the weights are not quantised: {entries} is left out.")
        files = [describe_file(file) for file in pickles]
        if _signatures(pickles) != before:
            raise SourceError(f"{source} was changed while it was read.", "Convert it again.")
        record = {
            "format": RECORD_FORMAT,
            "inheritune": __version__,
            "torch": reply["torch"],
            "source": {"name": source.resolve().name, "files": files},
            "cut": cut_facts(source),
            "dropped": reply["dropped"],
            "warnings": warnings,
            "check": check,
            "tokenizer": tokenizer,
            "confinement": reply["confinement"],
        }
        write_bytes(staging / "convert.json", to_json(record))
    return Converted(
        open_model(str(out)), check, tokenizer, reply["dropped"], warnings, reply["confinement"]
    )


def _signatures(files: list[Path]) -> list[tuple[int, int]]:
    return [(status.st_size, status.st_mtime_ns) for status in (file.stat() for file in files)]


def _unpickle(pickles: list[Path], config: Mapping[str, Any], staging: Path) -> dict[str, Any]:
    work = staging / "work"
    work.mkdir(mode=0o700)
    size = sum(file.stat().st_size for file in pickles)
    request = {
        "files": [str(file.resolve()) for file in pickles],
        "config": config,
        "largest_shard": MAX_SHARD_BYTES,
    }
    subject = pickles[0].name + (" and others" if len(pickles) > 1 else "")
    answer = ask("inheritune.conversion.rewrite", work, request, _limits(size), subject)
    return _expected_fields(answer, len(pickles))


def _limits(size: int) -> Limits:
    """Set limits for reading, writing and comparing files of ``size`` bytes."""
    # Each thread of torch reserves address space for its stack and its heap.
    threads = (os.cpu_count() or 1) * 2**27
    return Limits(
        file_bytes=4 * size + 2**30,
        memory_bytes=4 * size + threads + 2 * 2**30,
        seconds=_SECONDS + size // _SLOWEST_BYTES_PER_S,
    )


def _expected_fields(reply: Mapping[str, Any], files: int) -> dict[str, Any]:
    """Copy the expected fields of a reply; a stranger's file may have shaped it."""
    try:
        fields = {
            "torch": escape(reply["torch"]),
            "files": [str(name) for name in reply["files"]],
            "sources": [list(map(str, names)) for names in reply["sources"]],
            "dropped": {escape(k, 200): escape(v, 200) for k, v in reply["dropped"].items()},
            "warnings": [escape(warning, 400) for warning in reply["warnings"]],
            "unmapped": [escape(name) for name in reply["unmapped"]],
            "confinement": {escape(k): v is True for k, v in reply["confinement"].items()},
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise SourceError("the process that unpickled gave no usable answer.") from error
    if len(fields["sources"]) != files or not fields["files"]:
        raise SourceError("the process that unpickled gave no usable answer.")
    return fields


def _take_weights(reply: Mapping[str, Any], staging: Path) -> None:
    """Move the written weight files into place, and read them like any stranger's files."""
    work = staging / "work"
    shards: dict[str, list[Tensor]] = {}
    for name in reply["files"]:
        written = work / str(name)
        if not _SHARD.fullmatch(str(name)) or not stat.S_ISREG(written.lstat().st_mode):
            raise SourceError(f"the process that unpickled wrote {escape(name)}.")
        written.rename(staging / name)
        shards[name] = read_header(staging / name)[0]
    shutil.rmtree(work)
    write_index(shards, staging)


def _check_tokenizer(directory: Path) -> str:
    if (directory / "tokenizer.json").exists() or not (directory / "tokenizer.model").exists():
        return ""
    work = directory / "work"
    work.mkdir(mode=0o700)
    request = {"directory": str(directory)}
    limits = replace(_limits((directory / "tokenizer.model").stat().st_size), file_bytes=2**20)
    try:
        reply = ask("inheritune.conversion.tokenizer_ids", work, request, limits, "tokenizer.model")
        return escape(reply["check"], 400)
    except SourceError as error:  # the weights are what they are; nothing else depends on this
        return f"not checked: {error.message}"
    finally:
        shutil.rmtree(work)


def _warnings(reply: Mapping[str, Any], tokenizer: str) -> list[str]:
    warnings = list(reply["warnings"])
    if reply["unmapped"]:
        names = ", ".join(reply["unmapped"])
        warnings.append(
            f"{names}: in the format of torch before 1.6, which cannot be mapped; each was read "
            "into memory as a whole."
        )
    granted = reply["confinement"]
    if not (granted.get("network namespace") or granted.get("seccomp")):
        warnings.append("this system did not let the network be taken away; Python refused it.")
    if not granted.get("landlock"):
        warnings.append("this system did not confine writing; Python refused it.")
    if not granted.get("memory limit"):
        warnings.append("this system did not limit its memory.")
    if tokenizer and not tokenizer.startswith("equal: "):
        warnings.append(f"tokenizer.model: {tokenizer}")
    return warnings
