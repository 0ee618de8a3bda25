"""Try a repair on one fresh layer of a model's class, before the model itself is read."""

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import torch

from inheritune.model_files.config import cut_config
from inheritune.model_files.directory import ModelDirectory
from inheritune.model_files.shapes import meta_model, typed_config
from inheritune.repair.layer_passes import LayerPasses
from inheritune.repair.places import repaired_places
from inheritune.repair.projection import find_projection

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MOST_PARAMS = 10**9  # 4 GB; a larger layer is judged when the model is loaded
_TOKENS = 16


def refuse_class(reference: ModelDirectory, layer_map: Sequence[int], method: str) -> None:
    """Refuse a class without a projection that a repair can be folded into.

    Only the first layer that the repair would change is tried, with fresh weights; those of the
    reference are judged one by one when they are repaired.

    Raises:
        UnsupportedModelError: There is none, or the class does not run its layers one by one.
    """
    places = repaired_places(layer_map, reference.layers, method)
    model = _fresh_layer(reference, layer_map[places[0]]) if places else None
    if model is None:
        return
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.arange(1, _TOKENS + 1)[None] % vocabulary
    passes = LayerPasses(model, 1, ids)
    find_projection(passes, 0, ids, passes.embed(ids))


def _fresh_layer(reference: ModelDirectory, layer: int) -> "PreTrainedModel | None":
    """Build the class with one layer; None where it is too large, or cannot be built."""
    from transformers import AutoModelForCausalLM

    # Whether a cut can be built is judged by others, with the reason.
    with suppress(Exception), torch.random.fork_rng(devices=[]):
        config = typed_config(cut_config(reference.config, [layer])[0])
        if sum(p.numel() for p in meta_model(config).parameters()) > _MOST_PARAMS:
            return None
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, trust_remote_code=False
        )
        return model
    return None
