"""Open a Hugging Face model directory as data, without running its code or loading a weight."""

import errno
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from inheritune.errors import SourceError, UnsupportedModelError, escape
from inheritune.model_files.addresses import missing_directory
from inheritune.model_files.config import announced_prediction_layers, layer_count
from inheritune.model_files.copy import side_files
from inheritune.model_files.depth import with_stated_depth
from inheritune.model_files.download.hub import is_hub_id
from inheritune.model_files.download.whole import download_whole
from inheritune.model_files.layers import Container, find_container
from inheritune.model_files.model_class import find_class
from inheritune.model_files.quantisation import (
    forget_quantisation,
    refuse_quantised,
    without_leftover,
)
from inheritune.model_files.refusals import (
    refuse_attached_adapter,
    refuse_directory,
    refuse_ids_without_rows,
    refuse_unsafe_config,
    refuse_unsupported_type,
    refused_file,
    warn_of_adapter,
)
from inheritune.model_files.safe_path import (
    INDEX,
    SINGLE_FILE,
    read_weight_index,
    safe_file,
)
from inheritune.model_files.safetensors import Tensor, read_header
from inheritune.model_files.weight_index import placed_by_index
from inheritune.model_files.wrappers import refuse_wrapped
from inheritune.system.progress import Listener, silent
from inheritune.system.rows import html_table
from inheritune.system.strict_json import MODEL_FILE, read_json_object

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from inheritune.model_files.download.partial import PartialModel


_EMBEDDED = "embedded:"
_CHUNK = 2**20
_MOST_RECORD_BYTES = 4 * 2**20


@dataclass(frozen=True)
class ModelDirectory:
    """A model directory as data: its config, and where each tensor lies.

    Attributes:
        tensors: Tensors by name, file after file, in the order of their bytes.
        side_files: Files that a target takes over; see `copy.side_files`.
        name: Hub id, ``embedded:...``, or the name of the local directory.
        revision: Commit of a Hub id, else None.
        metadata: Metadata of each weight file, by file name.
        text_only: Whether this is the language model inside of what the files hold.
        remote: Fetches bytes that are not on this machine yet; None if all are here.
    """

    path: Path
    config: dict[str, Any] = field(repr=False)
    tensors: dict[str, Tensor] = field(repr=False)
    side_files: list[Path] = field(repr=False)
    name: str = ""
    revision: str | None = None
    metadata: Mapping[str, dict[str, str]] = field(default_factory=dict, repr=False)
    index_metadata: Mapping[str, Any] = field(default_factory=dict, repr=False)
    remote: "PartialModel | None" = None
    text_only: bool = False

    @property
    def layers(self) -> int:
        """Number of layers of the text model."""
        return layer_count(self.config)

    @cached_property
    def container(self) -> Container:
        """The list of tensors that are the layers."""
        announced = announced_prediction_layers(self.config)
        # The record of a cut model names the list: other lists may have as many entries.
        path = self.path / "inherit.json"
        prefix = None
        # The record of 70,000 tensors is large, and so many layers are found without it.
        if path.is_file() and path.stat().st_size <= _MOST_RECORD_BYTES:
            prefix = read_json_object(path, MODEL_FILE, "the record").get("container")
        prefix = prefix if isinstance(prefix, str) else None
        return find_container(self.tensors, self.layers, announced, prefix)

    @cached_property
    def left_behind(self) -> list[str]:
        """Names of the files and folders that no target takes over: other weights, cards, states.

        Hidden ones are not named.
        """
        if self.remote is not None and self.remote.listing is not None:
            names = set(self.remote.listing.files)
        elif self.path.is_dir():
            names = {f"{p.name}/x" if p.is_dir() else p.name for p in self.path.iterdir()}
        else:
            names = set()
        taken = {path.relative_to(self.path).as_posix() for path in self.side_files}
        left = names - taken - {"config.json", INDEX, *self.metadata}
        folders = {path.parent.name for path in self.side_files}
        shown = {name.partition("/")[0] + "/" * ("/" in name) for name in left}
        return sorted(n for n in shown if not n.startswith(".") and n.rstrip("/") not in folders)

    @property
    def params(self) -> int:
        """Number of values in all tensors; a tied head counts if the files hold a copy of it."""
        return sum(tensor.items for tensor in self.tensors.values())

    @cached_property
    def digest(self) -> str:
        """XXH3 digest of config.json and every weight file, 128 bits, in hexadecimal.

        Reads all files, once. It tells models apart, but does not withstand an attacker.
        """
        total = xxhash.xxh3_128((self.path / "config.json").read_bytes())
        for name in sorted(self.metadata):
            total.update(f"\n{name} ".encode())
            with (self.path / name).open("rb") as file:
                while data := file.read(_CHUNK):
                    total.update(data)
        return total.hexdigest()

    def load(self, **options: Any) -> "PreTrainedModel":
        """Load the model with transformers, from these files alone and without running their code.

        Args:
            **options: Options of its class's `from_pretrained`, such as ``dtype``.
        """
        from transformers import AutoConfig, AutoModelForCausalLM

        self.download(self.tensors.values())
        refuse_attached_adapter(self.path)
        safe = {"local_files_only": True, "use_safetensors": True, "trust_remote_code": False}
        config = AutoConfig.from_pretrained(
            self.path, local_files_only=True, trust_remote_code=False
        )
        forget_quantisation(config)
        found = find_class(self.config)  # an image-text model is no causal language model
        loader: Any = AutoModelForCausalLM if isinstance(found, str) else found
        model: PreTrainedModel = loader.from_pretrained(
            self.path, config=config, **(options | safe)
        )
        return model

    def _repr_html_(self) -> str:
        row = {"layers": self.layers, "parameters": self.params, "path": str(self.path)}
        return html_table([row], self.name)

    def missing_bytes(self, tensors: Iterable[Tensor]) -> int:
        """Count the bytes that `download` would fetch; 0 for a local directory."""
        return 0 if self.remote is None else self.remote.missing_bytes(_ranges(tensors))

    def download(self, tensors: Iterable[Tensor], on_progress: Listener = silent) -> None:
        """Fetch the bytes of these tensors that are not on this machine yet.

        Raises:
            MachineError: The Hub cannot be reached; what has arrived is kept.
        """
        if self.remote is not None:
            self.remote.download(_ranges(tensors), on_progress=on_progress)


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
    """Open a model, and refuse one whose layers cannot be taken safely.

    Reads only config.json, the headers of the weight files and parts of the tokenizer.

    Args:
        model: Local directory, ``embedded:demo``, or a Hub id, which is downloaded.
        revision: Branch, tag or commit of a Hub id.
        whole: Download all weights of a Hub id now. False: only their headers;
            `ModelDirectory.download` then fetches what is needed.
        stop: Stop flag, read several times a second while all weights are downloaded; a download
            of headers only ignores it.

    Raises:
        SourceError: The directory is missing, broken or unsafe, or not supported.
        MachineError: The Hub cannot be reached.
        Interrupted: ``stop`` returned True; what has arrived is kept.
    """
    # --- a directory on this machine ---
    if "\0" in model:
        raise SourceError(f"the model {escape(model)} holds a NUL.")
    if not model.strip():
        raise SourceError("the name of the model is empty.", "Name a Hub id or a directory.")
    local = Path(model).expanduser()
    is_embedded = model.startswith(_EMBEDDED)
    try:
        is_directory = local.is_dir()
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise SourceError(f"the model {escape(model, 60)} has too long a name.") from error
    if is_embedded or is_directory or not is_hub_id(model):
        if revision is not None:
            warnings.warn(f"{model} is a directory: its revision is ignored", stacklevel=2)
        if not is_embedded:
            if not is_directory and not local.is_file():
                raise missing_directory(model)
            return _open(local, local.resolve().name)
        if model != _EMBEDDED + "demo":
            raise SourceError(
                f"unknown model {escape(model)}.", "The only embedded model is embedded:demo."
            )
        return _open(Path(__file__).parents[1] / "demo_reference", model)
    # --- a Hub id; a file of this name was probably meant instead ---
    if local.exists():
        raise refused_file(local)
    if whole:
        snapshot = download_whole(model, revision, stop)
        return _open(snapshot, model, snapshot.name)
    from inheritune.model_files.download.partial import open_partial

    partial = open_partial(model, revision)
    try:
        opened = _open(partial.directory, model, partial.commit, is_whole=False)
    except UnsupportedModelError as error:
        # Its files have holes: no other command may be sent there.
        here = str(partial.directory)
        hint = error.hint.replace(here, "DIR")
        if "DIR" in hint:
            hint = f"Get it with `hf download {model} --local-dir DIR`. {hint}"
        raise UnsupportedModelError(error.message.replace(here, model), hint) from error
    return replace(opened, remote=partial)


def _open(
    directory: Path, name: str, revision: str | None = None, is_whole: bool = True
) -> ModelDirectory:
    refuse_directory(directory)
    path = safe_file(directory, "config.json")
    config = read_json_object(path, MODEL_FILE, "the config")
    tensors, metadata, index_metadata = open_weights(directory, is_whole)
    # The most specific first: a quantised model has keys that would be refused as unsafe.
    refuse_quantised(config, tensors.values(), directory)
    config, left_out = without_leftover(config)
    if left_out:
        warnings.warn(
            f"{path} speaks of quantised weights, but they are not: {', '.join(left_out)} is left "
            "out",
            stacklevel=3,
        )
    refuse_unsafe_config(config, path)
    refuse_unsupported_type(config, directory)
    refuse_wrapped(tensors, directory)
    warn_of_adapter(directory)
    config = with_stated_depth(config)
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


def open_weights(
    directory: Path, is_whole: bool = True
) -> tuple[dict[str, Tensor], dict[str, dict[str, str]], dict[str, Any]]:
    """Read the headers of all weight files: tensors, metadata by file, metadata of the index.

    Args:
        is_whole: Whether the bytes of the files are here, and not only their headers.
    """
    # transformers, too, takes the single file where both are there.
    if (directory / SINGLE_FILE).exists() or not (directory / INDEX).exists():
        if (directory / INDEX).exists():
            warnings.warn(
                f"{directory} holds {SINGLE_FILE} and an index: the single file is read, as "
                "transformers does",
                stacklevel=4,
            )
        placed, metadata = read_header(safe_file(directory, SINGLE_FILE))
        return {tensor.name: tensor for tensor in placed}, {SINGLE_FILE: metadata}, {}
    index = safe_file(directory, INDEX)
    weight_map, index_metadata = read_weight_index(index)
    # All names and links first: nothing is opened when one of them leads astray.
    files = {shard: safe_file(directory, shard) for shard in sorted(set(weight_map.values()))}
    headers = {shard: read_header(file) for shard, file in files.items()}
    placed_in = {shard: header[0] for shard, header in headers.items()}
    tensors = placed_by_index(weight_map, placed_in, str(index), are_whole=is_whole)
    return tensors, {shard: header[1] for shard, header in headers.items()}, index_metadata
