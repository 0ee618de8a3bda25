"""Texts are those of plain transformers, token by token, and end where the model ends."""

import json
from pathlib import Path

import pytest
import torch
from tiny_models import build
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaModel

from inheritune.errors import DataError, RecipeError, SourceError, UnsupportedModelError
from inheritune.evaluation.generation import check_prompt, generate_texts
from inheritune.evaluation.samples import GenerationSettings, TextModel, continue_prompts
from inheritune.model_files.directory import open_model

PROMPT = "def take(first"


def plain(directory: Path, seed: int = 0, **options: object) -> tuple[str, int]:
    """Text and tokens as a user of transformers gets them."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    torch.manual_seed(seed)
    out = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    added = out[0, ids.shape[1] :]
    return tokenizer.decode(added, skip_special_tokens=True), len(added)


def test_greedy_text_is_that_of_plain_transformers(tiny_reference: Path) -> None:
    text, tokens = plain(tiny_reference, max_new_tokens=20, do_sample=False)
    pieces: list[str] = []
    written = TextModel(tiny_reference).write(
        PROMPT, GenerationSettings(max_tokens=20), pieces.append
    )
    assert (written.text, written.tokens, written.end) == (text, tokens, "max_tokens")
    assert "".join(pieces) == text
    assert continue_prompts(tiny_reference, [PROMPT], 20) == [text]


@pytest.mark.parametrize("seed", [0, 7])
def test_drawn_text_is_that_of_plain_transformers_with_the_seed(
    tiny_reference: Path, seed: int
) -> None:
    text, tokens = plain(tiny_reference, seed, max_new_tokens=20, do_sample=True, temperature=0.7)
    state = torch.get_rng_state()
    settings = GenerationSettings(max_tokens=20, temperature=0.7, seed=seed)
    written = TextModel(tiny_reference).write(PROMPT, settings)
    assert (written.text, written.tokens) == (text, tokens)
    assert torch.equal(torch.get_rng_state(), state)  # the caller's numbers are its own


def test_pieces_hold_whole_characters_and_add_up_to_the_text(tiny_reference: Path) -> None:
    model = TextModel(tiny_reference)
    for seed in range(5):  # random bytes: parts of characters are among the tokens
        pieces: list[str] = []
        settings = GenerationSettings(max_tokens=60, temperature=5.0, seed=seed)
        written = model.write(PROMPT, settings, pieces.append)
        assert "".join(pieces) == written.text


def test_a_text_ends_where_the_model_ends_it(reference: Path) -> None:
    first = TextModel(reference).write(PROMPT, GenerationSettings(max_tokens=1))
    model = AutoModelForCausalLM.from_pretrained(reference)
    ids = AutoTokenizer.from_pretrained(reference)(PROMPT, return_tensors="pt")["input_ids"]
    likeliest = int(model(ids).logits[0, -1].argmax())
    (reference / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, likeliest]}))
    written = TextModel(reference).write(PROMPT, GenerationSettings(max_tokens=9))
    assert (written.tokens, written.end, written.text) == (1, "model", first.text)


def test_a_text_ends_where_the_positions_end(tiny_reference: Path) -> None:
    model = TextModel(tiny_reference, "small")
    prompt = "a b " * 30
    length = model.prompt_ids(prompt).shape[1]
    written = model.write(prompt, GenerationSettings(max_tokens=1000))
    assert (written.prompt_tokens, written.tokens) == (length, 128 - length)
    assert written.end == "positions"
    with pytest.raises(RecipeError, match=r"has \d+ tokens, and small has 128 positions"):
        model.prompt_ids("a b " * 80)


def test_a_chat_uses_the_models_own_template(reference: Path) -> None:
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}[assistant] "
    with pytest.raises(RecipeError, match="no chat template"):
        TextModel(reference).prompt_ids("hello", chat=True)
    (reference / "chat_template.jinja").write_text(template)
    model = TextModel(reference)
    same = model.prompt_ids("[user] hello[assistant] ")
    assert torch.equal(model.prompt_ids("hello", chat=True), same)
    (reference / "chat_template.jinja").write_text("{{ messages.nothing.there }}{% endfor %}")
    with pytest.raises(SourceError, match=r"chat template of .* is broken"):
        TextModel(reference).prompt_ids("hello", chat=True)


def test_a_model_without_its_head_is_refused(reference: Path) -> None:
    body = LlamaModel.from_pretrained(reference)
    (reference / "model.safetensors").unlink()
    body.save_pretrained(reference)
    with pytest.raises(SourceError, match=r"would draw lm_head\.weight at random"):
        TextModel(reference)


def test_a_model_without_a_tokenizer_is_refused(reference: Path) -> None:
    (reference / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="the tokenizer of small cannot be opened"):
        TextModel(reference, "small")


def test_broken_weights_are_named_when_tokens_are_drawn(reference: Path) -> None:
    model = build("llama", vocab_size=AutoModelForCausalLM.from_pretrained(reference).vocab_size)
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.nan)
    model.save_pretrained(reference)
    with pytest.raises(SourceError, match="not finite"):
        TextModel(reference).write(PROMPT, GenerationSettings(temperature=1.0))


def test_a_models_own_settings_may_name_a_form_or_an_end(reference: Path) -> None:
    settings = GenerationSettings(max_tokens=6)
    plain_text = TextModel(reference).write(PROMPT, settings).text
    own = {"return_dict_in_generate": True, "stop_strings": [plain_text[-1]]}
    (reference / "generation_config.json").write_text(json.dumps(own))
    written = TextModel(reference).write(PROMPT, settings)
    assert plain_text.startswith(written.text)
    assert written.text.endswith(plain_text[-1])


@pytest.mark.parametrize(
    "own",
    [
        {"cache_implementation": "quantized"},
        {"penalty_alpha": 0.6, "top_k": 4},
        {"stop_strings": 3},
    ],
)
def test_settings_that_a_model_cannot_write_with_are_named(
    own: dict[str, object], reference: Path
) -> None:
    (reference / "generation_config.json").write_text(json.dumps(own))
    with pytest.raises(UnsupportedModelError, match=r"with its generation_config\.json"):
        TextModel(reference).write(PROMPT, GenerationSettings(max_tokens=2))


def test_an_error_of_the_callers_own_function_stays_what_it_is(reference: Path) -> None:
    def fail(text: str) -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        TextModel(reference).write(PROMPT, GenerationSettings(), fail)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", -3),
        ("temperature", -1.0),
        ("temperature", 0.001),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("seed", -1),
        ("seed", 2**63),
    ],
)
def test_a_setting_out_of_its_range_is_refused(field: str, value: float) -> None:
    with pytest.raises(RecipeError, match=f"--{field.replace('_', '-')} is "):
        GenerationSettings(**{field: value}).check()  # type: ignore[arg-type]


@pytest.mark.parametrize("prompt", ["", " \n", "half \ud800"])
def test_a_prompt_that_cannot_be_continued_is_refused(prompt: str) -> None:
    with pytest.raises(RecipeError, match="the prompt"):
        check_prompt(prompt)


def test_models_write_in_turn_under_the_same_settings(tiny_reference: Path) -> None:
    model = open_model(str(tiny_reference))
    shown: list[tuple[str, str]] = []
    settings = GenerationSettings(max_tokens=5)
    generation = generate_texts(
        [("one", model), ("two", model)], "a <b>", settings, on_text=lambda *p: shown.append(p)
    )
    one, two = generation.texts
    assert one.text == two.text
    assert [name for name, _ in shown] == sorted(name for name, _ in shown)
    assert "".join(text for name, text in shown if name == "two") == two.text
    assert [row["model"] for row in generation.rows()] == ["one", "two"]
    assert "a &lt;b&gt;" in generation._repr_html_()
    assert json.loads(json.dumps(generation.as_json()))["settings"]["max_tokens"] == 5
