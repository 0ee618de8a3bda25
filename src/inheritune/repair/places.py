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


def places_before_gaps(layer_map: Sequence[int], total: int) -> list[int]:
    """List the places of a target behind which some of the reference's ``total`` are left out."""
    following = [*layer_map[1:], total]
    return [j for j, layer in enumerate(layer_map) if following[j] != layer + 1]


def repaired_places(layer_map: Sequence[int], total: int, method: str) -> list[int]:
    """List the places of a target that a method changes, in order.

    Raises:
        UnsupportedModelError: There are none, since only layers before the first kept one are left
            out and the method changes the layer before a gap.
    """
    places = places_before_gaps(layer_map, total)
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
    features: Mapping[int, int]  # of each layer that is fitted; see `fitted_features`
    width: int  # D
    head: int  # weights of the head


def repair_flops(
    layer_map: Sequence[int], method: str, sizes: LayerSizes, windows: int, length: int
) -> float:
    """Count the operations of a repair that chooses among `RIDGES`; see `repair_layers`.

    A layer on R tokens takes 2 R W, without the products within attention. A fit of F features to D
    channels takes R F (F + 2 D), as A^T A is symmetric, and F^3 / 3 + 2 F^2 D for its solution;
    a diagonal one (scale) none. With F those of `fitted_features`, 2 R F D change the outputs.

    The reference runs once, and the target from the first gap on with each ridge, fitted without
    the held-out windows, which all then predict; without a change on these alone. Then all is
    fitted again on all windows with the best ridge.
    """
    total = len(sizes.weights)
    places = repaired_places(layer_map, total, method)
    if not places:
        return 0.0
    kept = layer_map[first_place(layer_map, places) :]
    trials = len(RIDGES[method])
    held_out = -(-windows // HELD_OUT)
    tokens = windows * length

    def passes(layers: Iterable[int]) -> float:
        return 2.0 * sum(sizes.weights[layer] for layer in layers)

    flops = tokens * (passes(range(total)) + (trials + 1) * passes(kept))
    flops += held_out * length * (passes(kept) + (trials + 2) * 2.0 * sizes.head)
    for layer in (layer_map[place] for place in places):
        read, width = sizes.features[layer], sizes.width
        flops += (trials + 1) * 2.0 * tokens * read * width
        if method == "scale":
            continue
        count = read if method == "sequential" else width
        for fits, rows in ((trials, (windows - held_out) * length), (1, tokens)):
            flops += fits * float(rows) * count * (count + 2 * width)
            flops += fits * (count**3 / 3 + 2.0 * count**2 * width)
    return flops


def fitted_features(layer: Iterable[tuple[str, tuple[int, ...]]], width: int) -> int | None:
    """Tell by names and shapes how many features the projection of a layer reads, with its bias.

    The MLP's last projection reads as many as the widest matrix of (width, features), a linear
    one's shape or that of GPT-2's first one, which is as wide. None: there is no such matrix.
    """
    shapes = dict(layer)
    written = [(s[1], n) for n, s in shapes.items() if len(s) == 2 and s[0] == width]
    if not written:
        return None
    features, name = max(written)
    return features + (name.removesuffix("weight") + "bias" in shapes)
