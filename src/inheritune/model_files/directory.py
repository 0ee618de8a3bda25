"""A Hugging Face model directory, opened as data: nothing in it is run, and no weight is loaded."""

import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from inheritune.errors import SourceError, escape
from inheritune.model_files.config import announced_prediction_layers, layer_count, text_config
from inheritune.model_files.copy import side_files
from inheritune.model_files.download.hub import is_hub_id
from inheritune.model_files.download.whole import download
from inheritune.model_files.embedding_rows import refuse_ids_without_rows
from inheritune.model_files.layers import Container, find_container
from inheritune.model_files.refusals import (
    refuse_directory,
    refuse_unsafe_config,
    refuse_unsupported_model,
)
from inheritune.model_files.safe_path import safe_file, safe_shard_name
from inheritune.model_files.safetensors import Tensor, read_header
from inheritune.system.progress import Listener, silent
from inheritune.system.strict_json import MODEL_FILE, read_json_object

if TYPE_CHECKING:
    from inheritune.model_files.download.partial import RemoteFiles

__all__ = ["ModelDirectory", "open_model"]

_EMBEDDED = "embedded:"
_INDEX = "model.safetensors.index.json"
_CHUNK = 2**20
_MOST_RECORD_BYTES = 4 * 2**20


@dataclass(frozen=True)
class ModelDirectory:
    """What a model directory holds.

    Attributes:
        path: The directory.
        config: config.json, raw.
        tensors: By name, file after file, each in the order of its bytes.
        side_files: Tokenizer, generation config, templates, licence, remote code.
        name: Hub id, ``embedded:...``, or the name of the local directory.
        revision: Commit of a Hub id, else None.
        metadata: The metadata of each weight file, by its name.
        index_metadata: The metadata of the weight index; empty for a single file.
        remote: Where the bytes come from that are not on this machine yet; None: all are here.
    """

    path: Path
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    side_files: list[Path]
    name: str = ""
    revision: str | None = None
    metadata: Mapping[str, dict[str, str]] = field(default_factory=dict)
    index_metadata: Mapping[str, Any] = field(default_factory=dict)
    remote: "RemoteFiles | None" = None

    @property
    def layers(self) -> int:
        """Layers of the text model."""
        return layer_count(self.config)

    @cached_property
    def container(self) -> Container:
        """Where the layers are among the tensors."""
        announced = announced_prediction_layers(self.config)
        # A target of ours says where its layers are.
        known = _record(self.path).get("container")
        known = known if isinstance(known, str) else None
        return find_container(self.tensors, self.layers, announced, known)

    @property
    def params(self) -> int:
        """Values in all tensors of the files, those of a tied copy counted once more."""
        return sum(tensor.items for tensor in self.tensors.values())

    @cached_property
    def digest(self) -> str:
        """XXH3 digest of config.json and every weight file, 128 bits, in hexadecimal.

        Reads all files, once. It tells one model from another; it is no proof against an attacker.
        """
        total = xxhash.xxh3_128((self.path / "config.json").read_bytes())
        for name in sorted(self.metadata):
            total.update(f"\n{name} ".encode())
            with (self.path / name).open("rb") as file:
                while data := file.read(_CHUNK):
                    total.update(data)
        return total.hexdigest()

    def missing_bytes(self, tensors: Iterable[Tensor]) -> int:
        """Bytes of these tensors that `download` would fetch; 0 for a local directory."""
        return 0 if self.remote is None else self.remote.missing_bytes(_ranges(tensors))

    def download(self, tensors: Iterable[Tensor], on_progress: Listener = silent) -> None:
        """Make the bytes of these tensors present on this machine.

        Args:
            tensors: Of this model.
            on_progress: Told of the progress in bytes.

        Raises:
            MachineError: The Hub cannot be reached; what has come is kept for the next time.
        """
        if self.remote is not None:
            self.remote.download(_ranges(tensors), on_progress=on_progress)


def _record(directory: Path) -> dict[str, Any]:
    path = directory / "inherit.json"
    # Of a model with 70,000 tensors, it is large, and its layers are found without it.
    small = path.is_file() and path.stat().st_size <= _MOST_RECORD_BYTES
    return read_json_object(path, MODEL_FILE, "the record") if small else {}


def _ranges(tensors: Iterable[Tensor]) -> list[tuple[str, int, int]]:
    # Where only the beginning of each row is kept, the rows are fetched whole.
    return [(t.file.name, t.offset, t.pitch * t.shape[0] if t.pitch else t.size) for t in tensors]


def open_model(
    model: str,
    revision: str | None = None,
    *,
    whole: bool = True,
    stop: Callable[[], bool] = lambda: False,
) -> ModelDirectory:
    """Open a model directory, and refuse what layers cannot safely be taken from.

    Only headers of the weight files are read.

    Args:
        model: Local directory, ``embedded:demo``, or a Hub id, which is downloaded.
        revision: Branch, tag or commit of a Hub id.
        whole: Whether all weights of a Hub id are downloaded now. If not, only their headers are,
            and `ModelDirectory.download` fetches what is wanted of the rest.
        stop: Asked several times a second while all weights are downloaded.

    Raises:
        SourceError: The directory is missing, broken or unsafe, or not supported.
        MachineError: The Hub cannot be reached.
        Interrupted: ``stop`` said so; what has arrived is kept.
    """
    if "\0" in model:
        raise SourceError(f"the model {escape(model)} holds a NUL.")
    embedded = model.startswith(_EMBEDDED)
    local = Path(model).expanduser()
    if embedded or local.is_dir() or not is_hub_id(model):
        if revision is not None:
            warnings.warn(f"{model} is a directory: its revision is ignored", stacklevel=2)
        directory = _embedded(model) if embedded else local
        return _open(directory, model if embedded else local.resolve().name, None)
    if local.exists():
        raise SourceError(f"{model} is a file.", "Name the model directory that holds it.")
    if whole:
        snapshot = download(model, revision, stop)
        return _open(snapshot, model, snapshot.name)
    from inheritune.model_files.download.partial import open_remote

    remote = open_remote(model, revision)
    return replace(_open(remote.directory, model, remote.commit), remote=remote)


def _embedded(model: str) -> Path:
    name = model.removeprefix(_EMBEDDED)
    directory = Path(__file__).parents[1] / f"{name}_reference"
    if name != "demo" or not directory.is_dir():
        raise SourceError(
            f"there is no model {escape(model)}.", "The one that is is embedded:demo."
        )
    return directory


def _open(directory: Path, name: str, revision: str | None) -> ModelDirectory:
    refuse_directory(directory)
    path = safe_file(directory, "config.json")
    config = read_json_object(path, MODEL_FILE, "the config")
    refuse_unsafe_config(config, path)
    tensors, metadata, index_metadata = _open_weights(directory)
    refuse_unsupported_model(config, text_config(config), tensors.values(), directory)
    model = ModelDirectory(
        path=directory,
        config=config,
        tensors=tensors,
        side_files=side_files(directory),
        name=name,
        revision=revision,
        metadata=metadata,
        index_metadata=index_metadata,
    )
    refuse_ids_without_rows(directory, tensors.values())
    # Weights and config that disagree are found now, not after the first training.
    _ = model.container
    return model


def _open_weights(
    directory: Path,
) -> tuple[dict[str, Tensor], dict[str, dict[str, str]], dict[str, Any]]:
    # transformers takes the single file too where both are there.
    if (directory / "model.safetensors").exists() or not (directory / _INDEX).exists():
        tensors, metadata = read_header(safe_file(directory, "model.safetensors"))
        return {t.name: t for t in tensors}, {"model.safetensors": metadata}, {}
    path = safe_file(directory, _INDEX)
    index = read_json_object(path, MODEL_FILE, "the weight index")
    weight_map = index.pop("weight_map", None)
    if not isinstance(weight_map, dict) or not weight_map:
        raise SourceError(f"{path} has no weight_map.", "Download it again.")
    # All names first: nothing is opened when one of them leads astray.
    weight_map = {n: sys.intern(safe_shard_name(v, path)) for n, v in weight_map.items()}
    shards = sorted(set(weight_map.values()))
    files = {shard: safe_file(directory, shard) for shard in shards}
    found: dict[str, Tensor] = {}
    metadatas: dict[str, dict[str, str]] = {}
    for shard, file in files.items():
        tensors, metadatas[shard] = read_header(file)
        for tensor in tensors:
            _refuse_disagreement(tensor.name, shard, weight_map, found, path)
            found[tensor.name] = tensor
    lacking = [name for name in weight_map if name not in found]
    if lacking:
        raise SourceError(
            f"{path} says that {weight_map[lacking[0]]} holds {escape(lacking[0])!r}; it does not.",
            "Download the model again.",
        )
    more = index.get("metadata")
    return found, metadatas, more if isinstance(more, dict) else {}


def _refuse_disagreement(
    name: str, shard: str, weight_map: dict[str, Any], found: dict[str, Tensor], path: Path
) -> None:
    if name in found:
        both = f"{found[name].file.name} and {shard}"
        raise SourceError(f"{escape(name)!r} is in two files, {both}.", "Download the model again.")
    if weight_map.get(name) != shard:
        raise SourceError(
            f"{shard} holds {escape(name)!r}, which {path} does not place there.",
            "Download the model again.",
        )
