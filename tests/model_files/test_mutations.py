"""Any change to a sound header, index or config is read or refused, and nothing else happens."""

import copy
import json
import os
import struct
import sys
import time
import tracemalloc
import warnings
from contextlib import contextmanager
from pathlib import Path

import pytest
import tiny_models
from fuzzing import MORE, fuzz
from hypothesis import given
from hypothesis import strategies as st

from inheritune.errors import InherituneError
from inheritune.model_files.config import cut_config
from inheritune.model_files.config_fields import COUNTS, LEFT_ALONE, RULES
from inheritune.model_files.directory import open_model
from inheritune.surgery.plan import plan_inherit

INDEX = "model.safetensors.index.json"
FILES = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
LAYERS = 4
TOUCHED: list[str] = []
WATCHING = False


def _watch(event, arguments):
    if not WATCHING:
        return
    if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        TOUCHED.append(os.fsdecode(arguments[0]))
    elif event in {"socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system"}:
        TOUCHED.append(event)


sys.addaudithook(_watch)  # `os.open` tells of an "open", too


@contextmanager
def harmless(directory):
    """Our own errors only, in little time and memory, and no file but those of the directory."""
    global WATCHING
    TOUCHED.clear()
    tracemalloc.start()
    started, WATCHING = time.process_time(), True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except InherituneError as error:
        assert 1 <= len(str(error).splitlines()) <= 3
        assert error.exit_code in {2, 3}
    finally:
        WATCHING = False
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 300 * 2**20
    assert time.process_time() - started < 5
    outside = [name for name in TOUCHED if not Path(name).is_relative_to(directory)]
    assert not outside


def read_all(directory):
    with harmless(directory):
        model = open_model(str(directory))
        for layers in (1, LAYERS - 1, LAYERS, (0, 2)):
            with harmless_part():
                plan_inherit(model, layers)


@contextmanager
def harmless_part():
    """One cut may be refused, and the next one not."""
    try:
        yield
    except InherituneError as error:
        assert len(str(error).splitlines()) <= 3


# -- sound files, with every field that a rule knows


def sound_tensors():
    names = [f"model.layers.{i}.{part}.weight" for i in range(LAYERS) for part in ("attn", "mlp")]
    return dict.fromkeys(["model.embed_tokens.weight", *names, "model.norm.weight"], (2, 3))


def sound_header(part):
    names = list(sound_tensors())
    header, position = {"__metadata__": {"format": "pt"}}, 0
    for name in names[: len(names) // 2] if part == 0 else names[len(names) // 2 :]:
        header[name] = {"dtype": "F32", "shape": [2, 3], "data_offsets": [position, position + 24]}
        position += 24
    return header


def sound_index():
    files = {name: FILES[part] for part in (0, 1) for name in sound_header(part)}
    del files["__metadata__"]
    return {"metadata": {"total_size": 240}, "weight_map": files}


def known_field(name):
    if name in {"hybrid_override_pattern", "index_topk_pattern"}:
        return "M*M*"
    if name == "attention_types":
        return [[["global", "local"], 2]]
    if name == "per_layer_config":
        return {"0": {"a": 1}, "3": {}}
    if name in {"moe_layer_end_index", "num_kv_shared_layers", "scale_depth"}:
        return 1
    if name.startswith(("num_nextn", "num_mtp", "mtp_")):
        return 0
    if name in {*COUNTS, "num_blocks"}:
        return LAYERS
    return [0, 1, 2, 3]


SOUND = {"model_type": "unheard_of", "num_hidden_layers": LAYERS} | {
    "hidden_size_per_layer_input": 4,
    "full_attention_interval": 2,
    "linear_attn_config": {"full_attn_layers": [1, 3], "kda_layers": [2, 4]},
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "vision_config": {"deepstack_visual_indexes": [1], "num_hidden_layers": 9},
    "rope_parameters": {"rope_type": "default"},
    "auto_map": {"AutoModel": "x.X"},
    "architectures": ["X"],
}
EVERY_RULE = SOUND | {name: known_field(name) for name in RULES}
CONFIGS = [
    SOUND,
    EVERY_RULE,
    {"architectures": ["X"], "text_config": EVERY_RULE, "model_type": "outer"},
    *(
        SOUND | {"model_type": model_type, "layer_types": ["full_attention"] * LAYERS}
        for model_type in ("gemma4", "longcat_flash", "zamba", "minimax", "gemma3n_text")
    ),
]


def write(directory, config, index, headers, lengths=(None, None), sizes=(120, 120)):
    directory.mkdir(exist_ok=True)
    for name, value in (("config.json", config), (INDEX, index)):
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        (directory / name).write_bytes(data)
    for file, header, length, size in zip(FILES, headers, lengths, sizes, strict=True):
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        start = struct.pack("<Q", len(text) if length is None else length)
        (directory / file).write_bytes(start + text + b"\0" * size)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("mutations") / "model"


# -- changes

FIELDS = sorted({*RULES, *LEFT_ALONE, "model_type", "__metadata__", "dtype", "trust_remote_code"})
SCALARS = [
    *(None, True, False, 0, 1, -1, 3, 4, 5, 2**31, 2**63, 2**64, 10**12, 10**400, -(10**400)),
    *(0.5, -0.0, 1e308, 5e-324, float("inf"), "", "a", "4,5,6", "0", "1" * 5000, "9" * 300),
    *(
        "../outside.safetensors",
        "/etc/passwd",
        "a\0b",
        "\n",
        "\u202e",
        "😀",
        "F32",
        "gemma4",
        "mamba",
    ),
    *(FILES[0], "model.safetensors", "evil/kernel", "model.layers.0.attn.weight", "é" * 1000),
]
COLLECTIONS = [
    *([], {}, [[]] * LAYERS, [None] * LAYERS, [{}] * LAYERS, ["a"] * 5000, {"a": 1}, {"0": 1}),
    *([4, 3, 2, 1], [1, 2], [10**400] * LAYERS, [1, "a"], [True] * LAYERS, ["full_attention"] * 4),
    *([[["global", "local"], 10**9]], [[["global"], -5]], [["global"]], [[5, 5]], [[[], 10**12]]),
    *([[["a"], "b"]], [[{"a": 1}, 2]], [["global", 10**9]], [[["a"], 10**400]]),
    *({"9" * 5000: 1, "٣": 2, "-1": 3}, {"²": 1}, {"": 1}, "9" * 5000 + ",1", "²,٣"),
    *({"num_hidden_layers": 4}, {"num_hidden_layers": "4"}, {"model_type": []}),
    *({"deepstack_visual_indexes": [1] * 9}, {"full_attn_layers": "a"}, {"full_attn_layers": [[]]}),
]
VALUES = st.recursive(
    st.sampled_from(SCALARS) | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=9), inner, max_size=4)
        | st.sampled_from(COLLECTIONS)
    ),
    max_leaves=8,
)


def paths(value, here=()):
    yield here
    lists = enumerate(value) if isinstance(value, list) else ()
    for key, item in value.items() if isinstance(value, dict) else lists:
        yield from paths(item, (*here, key))


def change(draw, value):
    """Put, remove, rename or repeat something somewhere in a JSON value."""
    value = copy.deepcopy(value)
    path = draw(st.sampled_from(list(paths(value))))
    if not path:
        return draw(VALUES)
    parent = value
    for key in path[:-1]:
        parent = parent[key]
    what = draw(st.sampled_from(["put", "remove", "add", "rename"]))
    if what == "put":
        parent[path[-1]] = draw(VALUES)
    elif what == "remove":
        del parent[path[-1]]
    elif isinstance(parent, list):
        parent.insert(path[-1], draw(VALUES))
    elif what == "add":
        parent[draw(st.sampled_from(FIELDS) | st.text(max_size=9))] = draw(VALUES)
    else:
        parent[draw(st.sampled_from(FIELDS) | st.text(max_size=9))] = parent.pop(path[-1])
    return value


@st.composite
def changed(draw, sound):
    value = draw(st.sampled_from(sound))
    for _ in range(draw(st.integers(1, 3))):
        value = change(draw, value)
    return value


PIECES = [
    b"",
    b"{",
    b"}",
    b"[",
    b"[" * 3000,
    b'"',
    b"\\",
    b",",
    b":",
    b"NaN",
    b"Infinity",
    b"1e999",
]
PIECES += [b"9" * 5000, b'{"a":' * 3000, b"\xff", b"\0", b'"a":1,"a":2', b"\\ud800", b" " * 9000]


@st.composite
def damaged(draw, sound):
    """A sound text with some of its bytes replaced."""
    text = json.dumps(draw(st.sampled_from(sound))).encode()
    for _ in range(draw(st.integers(1, 3))):
        first = draw(st.integers(0, len(text)))
        last = draw(st.integers(first, min(len(text), first + 40)) | st.just(len(text)))
        text = text[:first] + draw(st.sampled_from(PIECES) | st.binary(max_size=9)) + text[last:]
    return text


HEADERS = [sound_header(0), sound_header(1)]
LENGTHS = st.sampled_from([None, 0, 1, 7, 100, 2**24, 2**24 + 1, 10**8, 2**31, 2**63, 2**64 - 1])


@pytest.mark.parametrize("config", CONFIGS)
def test_unchanged_files_are_read(directory, config):
    write(directory, config, sound_index(), HEADERS)
    with harmless(directory):
        model = open_model(str(directory))
        assert model.layers == LAYERS
        assert len(plan_inherit(model, LAYERS).tensors) == 10
        assert cut_config(config, LAYERS)[0] is not None
    assert {Path(name).name for name in TOUCHED} >= {"config.json", INDEX, *FILES}


@fuzz(100)
@given(changed(CONFIGS) | damaged(CONFIGS))
def test_any_config_is_read_or_refused(directory, config):
    write(directory, config, sound_index(), HEADERS)
    read_all(directory)


@fuzz(100)
@given(changed([sound_index()]) | damaged([sound_index()]))
def test_any_index_is_read_or_refused(directory, index):
    write(directory, SOUND, index, HEADERS)
    read_all(directory)


@fuzz(100)
@given(
    changed(HEADERS[:1]) | damaged(HEADERS[:1]),
    LENGTHS | st.integers(0, 3000),
    st.sampled_from([120, 0, 1, 119, 121, 5000]),
)
def test_any_header_is_read_or_refused(directory, header, length, size):
    write(directory, SOUND, sound_index(), [header, HEADERS[1]], (length, None), (size, 120))
    read_all(directory)


@fuzz(100)
@given(st.data())
def test_any_change_to_everything_is_read_or_refused(directory, data):
    config = data.draw(changed(CONFIGS))
    index, header = data.draw(changed([sound_index()])), data.draw(changed(HEADERS[:1]))
    write(directory, config, index, [header, HEADERS[1]])
    read_all(directory)


KEYS = sorted(
    {
        *RULES,
        *LEFT_ALONE,
        *SOUND,
        "text_config",
        "llm_config",
        "layer_types",
        "block_types",
        "dtype",
    }
    | {"full_attn_idxs", "layer_group_size", "quantization_config", "is_encoder_decoder", "mtp_x"}
    | {"some_layers", "anything", "torch_dtype", "attn_implementation", "_name_or_path"}
)
TYPES = ["gemma4", "gemma3n_text", "minicpm3", "zamba", "longcat_flash"]


@pytest.mark.parametrize(("number", "key"), enumerate(KEYS))
def test_any_value_of_any_known_key_is_cut_or_refused(number, key):
    types = TYPES if MORE > 1 else [TYPES[number % len(TYPES)]]
    fields = SOUND | {"layer_types": ["full_attention"] * LAYERS}
    with harmless(Path("/nowhere")):
        for value in [*SCALARS, *COLLECTIONS]:
            for config in [
                SOUND | {key: value},
                {"text_config": SOUND | {key: value}},
                *(fields | {"model_type": model_type, key: value} for model_type in types),
            ]:
                for layers in (1, (0, 2)):
                    with harmless_part():
                        cut_config(config, layers)


@fuzz(100)
@given(changed(CONFIGS), st.sampled_from([1, 2, 3, 4, (0, 2), (1, 3), (3,)]))
def test_any_config_alone_is_cut_or_refused(config, layers):
    if isinstance(config, dict):
        with harmless(Path("/nowhere")):
            cut_config(config, layers)


@pytest.mark.fuzz
@pytest.mark.parametrize("family", ["gemma3", "gpt-neo", "mixtral", "olmo3"])
def test_any_changed_config_of_a_real_class_is_cut_or_refused(family):
    config = json.loads(tiny_models.build(family).config.to_json_string())

    @fuzz(35)
    @given(changed([config]))
    def cut(changed_config):
        if isinstance(changed_config, dict):
            with harmless(Path("/nowhere")):
                cut_config(changed_config, 2)

    cut()
