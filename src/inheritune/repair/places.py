"""Tell which layers a repair changes, and estimate the operations that it takes; without torch."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from inheritune.errors import UnsupportedModelError

# Ridges to choose from, in units of the mean diagonal of A^T A.
RIDGES = {
    "sequential": (0.1, 0.3, 1.0),
    "linear": (1e-3, 1e-2, 1e-1),
    "scale": (1e-3, 1e-2, 1e-1),
}
HELD_OUT = 8  # every eighth window is held out to choose the ridge on


def repaired_places(layer_map: Sequence[int], total: int, method: str) -> list[int]:
    """List the places of a target that a method changes, in order.

    Raises:
        UnsupportedModelError: There are none, since only layers before the first kept one are left
            out and the method changes the layer before a gap.
    """
    following = [*layer_map[1:], total]
    places = [j for j, n in enumerate(layer_map) if following[j] != n + 1]  # before a gap
    if len(layer_map) == total:
        return []
    if method == "sequential":
        return [*range(first_place(layer_map, places), len(layer_map))]
    if not places:
        raise UnsupportedModelError(
            f"repair: {method} changes the kept layer before a gap, but this gap is at the "
            "beginning.",
            "Choose sequential, which changes the layers behind it, or other layers.",
        )
    return places


def first_place(layer_map: Sequence[int], places: Sequence[int]) -> int:
    """Return the first place whose input the reference and the target need not have in common."""
    return 0 if layer_map[0] else places[0]


@dataclass(frozen=True)
class LayerSizes:
    """Sizes of a reference, by which a repair's operations are counted."""

    weights: Sequence[int]  # W of each layer
    features: Mapping[int, int]  # F of each layer that is fitted; see `fitted_features`
    width: int  # D
    head: int  # weights of the head


def repair_flops(
    layer_map: Sequence[int], method: str, sizes: LayerSizes, windows: int, length: int
) -> float:
    """Count the operations of a repair that chooses among `RIDGES`; see `repair_layers`.

    A layer on R tokens takes 2 R W, without the products within attention. A fit of F features to D
    channels takes the layer once more, and 2 R F (F + D) + F^3 / 3 + 4 F^2 D for its sums and its
    solution; a diagonal one (scale) the layer alone.

    With each ridge, and without a change, the target runs from the first gap on beside the
    reference, fitted without the held-out windows, and both predict these. Then all is fitted
    again on all windows with the best ridge.
    """
    total = len(sizes.weights)
    places = repaired_places(layer_map, total, method)
    if not places:
        return 0.0
    first, trials = first_place(layer_map, places), len(RIDGES[method]) + 1
    held_out = -(-windows // HELD_OUT)
    tokens = windows * length

    def passes(layers: Iterable[int]) -> float:
        return 2.0 * tokens * sum(sizes.weights[layer] for layer in layers)

    flops = passes(range(total)) + passes(range(first, total))  # the reference, twice
    flops += trials * passes(layer_map[first:]) + passes(layer_map[first:-1])
    flops += trials * 2 * 2.0 * sizes.head * held_out * length
    for fits, rows in ((trials - 1, (windows - held_out) * length), (1, tokens)):
        for layer in (layer_map[place] for place in places):
            flops += fits * 2.0 * rows * sizes.weights[layer]
            if method != "scale":
                count, width = sizes.features[layer], sizes.width
                flops += fits * 2.0 * rows * count * (count + width)
                flops += fits * (count**3 / 3 + 4.0 * count**2 * width)
    return flops


def fitted_features(
    layer: Iterable[tuple[str, tuple[int, ...]]], method: str, width: int
) -> int | None:
    """Tell by names and shapes how many features the fit of a layer has; see `Projection.features`.

    The MLP's last projection reads as many as the widest matrix of (width, features), a linear
    one's shape or that of GPT-2's first one, which is as wide. None: there is no such matrix.
    """
    shapes = dict(layer)
    written = [(s[1], n) for n, s in shapes.items() if len(s) == 2 and s[0] == width]
    if not written or method != "sequential":
        return width if written else None
    features, name = max(written)
    return features + (name.removesuffix("weight") + "bias" in shapes)
