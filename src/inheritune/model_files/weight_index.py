"""Find each tensor of a model in several files where its weight index says that it is."""

import warnings
from collections.abc import Collection, Mapping, Sequence

from inheritune.errors import SourceError, escape
from inheritune.model_files.safetensors import Tensor
from inheritune.model_files.write import read_chunks


def placed_by_index(
    by_index: Mapping[str, str],
    headers: Mapping[str, Sequence[Tensor]],
    index: str,
    *,
    are_whole: bool,
) -> dict[str, Tensor]:
    """Take the tensors that a weight index names, each from its file; warn of what disagrees.

    Tools leave stale buffers and heads behind, which no program reads. Whether a tensor that no
    file holds is needed, only the model's class can tell.

    Args:
        by_index: File name of each tensor by the index.
        headers: Tensors of each file, in the order of their bytes.
        index: Its path, for messages.
        are_whole: Whether the bytes of the files are here, to compare copies.

    Raises:
        SourceError: Two files hold different tensors of one name.
    """
    holders: dict[str, dict[str, Tensor]] = {}
    for file, placed in headers.items():
        for tensor in placed:
            holders.setdefault(tensor.name, {})[file] = tensor
    for copies in holders.values():
        _refuse_different([*copies.values()], are_whole)
    tensors = {
        tensor.name: tensor
        for file, placed in headers.items()
        for tensor in placed
        if file == by_index.get(tensor.name)
        or (tensor.name in by_index and by_index[tensor.name] not in holders[tensor.name])
    }
    for warning in disagreements(by_index, {n: t.file.name for n, t in tensors.items()}, holders):
        warnings.warn(f"{index} {warning}", stacklevel=5)
    return tensors


def disagreements(
    by_index: Mapping[str, str], by_header: Mapping[str, str], held: Collection[str]
) -> list[str]:
    """Describe where a weight index and the files disagree, as predicates of the index.

    Args:
        by_header: File name of each tensor that is read.
        held: Names of all tensors in the files.
    """
    missing = sorted(by_index.keys() - set(held))
    extra = sorted(set(held) - by_index.keys())
    moved = sorted(n for n, file in by_header.items() if by_index.get(n, file) != file)
    found = (
        (missing, "names {}, which no file holds: the model's class may do without"),
        (extra, "does not name {}, which a file holds: left out, as the index decides"),
        (moved, "names another file for {} than the one that holds it"),
    )
    return [words.format(_some(names)) for names, words in found if names]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{escape(names[0])}{more}"


def _refuse_different(copies: Sequence[Tensor], are_whole: bool) -> None:
    first = copies[0]
    for other in copies[1:]:
        same = (first.dtype, first.shape) == (other.dtype, other.shape)
        if same and are_whole:
            pairs = zip(read_chunks(first), read_chunks(other), strict=True)
            same = all(one == two for one, two in pairs)
        if not same:
            raise SourceError(
                f"{escape(first.name)!r} is in two files, {first.file.name} and "
                f"{other.file.name}, with different values.",
                "Download the model again.",
            )
