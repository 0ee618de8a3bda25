"""The layers are found among tensor names."""

import pytest

from inheritune.errors import SourceError, UnsupportedModelError
from inheritune.model_files.layers import find_container, numbered


def names(prefix, count):
    return [f"{prefix}{i}.{part}" for i in range(count) for part in ("attn.w", "mlp.experts.7.w")]


@pytest.mark.parametrize(
    "prefix",
    [
        "model.layers.",
        "h.",
        "transformer.h.",
        "model.decoder.layers.",
        "backbone.layers.",
        "cpmant.encoder.layers.",
        "model.language_model.layers.",
    ],
)
def test_the_list_with_every_number_is_the_container(prefix):
    found = find_container([*names(prefix, 6), "wte.weight", "norm.0.weight"], 6)
    assert found.prefix == prefix
    assert found.extra == ()


def test_lists_of_vision_and_audio_towers_are_no_candidates():
    both = [*names("model.layers.", 12), *names("model.vision_tower.encoder.layers.", 12)]
    assert find_container(both, 12).prefix == "model.layers."


def test_two_lists_of_that_length_are_refused_by_name():
    with pytest.raises(UnsupportedModelError, match=r"a\.layers\., b\.layers\."):
        find_container([*names("b.layers.", 3), *names("a.layers.", 3)], 3)


def test_a_recorded_prefix_decides_between_two_lists():
    both = [*names("b.layers.", 3), *names("a.layers.", 3)]
    assert find_container(both, 3, recorded_prefix="b.layers.").prefix == "b.layers."


def test_missing_and_extra_layers_are_listed():
    held = [n for n in names("model.layers.", 7) if ".2." not in n]
    with pytest.raises(
        SourceError, match=r"hold 0-1, 3-6 under model\.layers\. \(missing: 2, extra: 5-6"
    ):
        find_container(held, 5)
    with pytest.raises(SourceError, match=r"hold 0-1, 3-6 under model\.layers\. \(missing: 2, 7-8"):
        find_container(held, 9)
    with pytest.raises(SourceError, match=r"also hold 4-6 under model\.layers\."):
        find_container(names("model.layers.", 7), 4)


def test_prediction_layers_are_extra_when_announced():
    found = find_container([*names("model.layers.", 5), "mtp.layers.0.w", "mtp.fc.w"], 4, 1)
    assert found.extra == (4,)
    assert found.outside == {"mtp.layers.0.w", "mtp.fc.w"}
    assert not found.keeps("model.layers.4.attn.w", range(4))
    assert not found.keeps("mtp.fc.w", range(4))


def test_everything_outside_is_kept():
    found = find_container([*names("h.", 4), "other.3.w", "lm_head.weight"], 4)
    kept = [
        n
        for n in ("h.0.w", "h.1.w", "h.2.w", "other.3.w", "lm_head.weight", "3.w")
        if found.keeps(n, range(2))
    ]
    assert kept == ["h.0.w", "h.1.w", "other.3.w", "lm_head.weight", "3.w"]


def test_lists_of_almost_that_length_are_pointed_out():
    held = [*names("h.", 6), *names("gates.", 5), *names("heads.", 7), *names("few.", 3)]
    assert find_container(
        [n for n in held if not n.startswith("heads.6")], 6, recorded_prefix="h."
    ).parallel
    assert find_container([*names("h.", 6), *names("gates.", 5)], 6).parallel == ("gates.",)
    assert find_container([*names("h.", 6), *names("few.", 3)], 6).parallel == ()


def test_a_config_that_claims_a_trillion_layers_is_refused_at_once():
    with pytest.raises(SourceError, match="1000000000000 layers"):
        find_container(names("h.", 4), 10**12)


@pytest.mark.parametrize(
    "name, found",
    [
        ("h.3.attn.w", ("h.", 3)),
        ("3.w", ("", 3)),
        ("model.layers.10.experts.2.w", ("model.layers.", 10)),
        ("lm_head.weight", None),
        ("layer3.w", None),
        ("x.²", None),
        ("x.99999999999", None),
    ],
)
def test_names_are_split_at_their_first_number(name, found):
    assert numbered(name) == found


def test_queries_beside_the_layers_go_with_them():
    queries = [f"llm.attn_res.mlp_queries.{i}" for i in range(6)]
    queries += [f"llm.attn_res.attn_queries.{i}" for i in range(5)]
    found = find_container([*names("llm.layers.", 6), *queries, "llm.attn_res.output_query"], 6)
    assert (found.prefix, found.parallel) == ("llm.layers.", ())
    assert found.layer_of("llm.attn_res.mlp_queries.2") == 2
    assert found.layer_of("llm.attn_res.attn_queries.2") == 3
    assert found.layer_of("llm.layers.2.attn.w") == 2
    assert found.layer_of("llm.attn_res.output_query") is None
    assert found.layer_of("llm.norm.2.w") is None
    kept = [name for name in queries if found.keeps(name, range(2))]
    assert kept == [queries[0], queries[1], "llm.attn_res.attn_queries.0"]
