"""What trains, what tasks are asked and what users of a model get are one tokenization."""

import json
from pathlib import Path
from typing import Any

import pytest
from other_tokenizer import ROWS, tokenizer_json, write_tokenizer
from tiny_models import build, train_tokenizer
from tiny_tasks import write_tasks
from tokenizers import Tokenizer, processors

from inheritune import api
from inheritune.data.tokenizer import open_tokenizer
from inheritune.data.tokens import TokenDirectory
from inheritune.reporting.task_tables import scores_table
from inheritune.run import notes as run_notes
from inheritune.run_record.measurements import EvaluatedModelRecord
from inheritune.surgery.class_check.tokenizer_ids import PROBES
from inheritune.training.tokenization import compare_here, compare_tokenization, load_as_trained


@pytest.mark.parametrize(
    ("name", "model_type"),
    [
        *(("GPT2Tokenizer", "llama"), ("GPT2Tokenizer", "starcoder2")),
        *(("GPTNeoXTokenizer", "gpt_neox"), ("Qwen2Tokenizer", "qwen2")),
        ("CohereTokenizer", "cohere"),
    ],
)
def test_a_class_that_reads_a_tokenizer_otherwise_is_named_and_passed_over(
    tmp_path: Path, name: str, model_type: str
) -> None:
    directory = write_tokenizer(tmp_path, model_type, tokenizer_class=name)
    found = compare_here(directory)
    assert found is not None
    assert found.differences[0].startswith(f"{name} of transformers gives other ids")
    assert found.differences[0].endswith(
        "Load it with PreTrainedTokenizerFast, as tasks and samples do here."
    )
    loaded, expected = load_as_trained(directory), open_tokenizer(directory).encode_batch(PROBES)
    assert [loaded.encode(text, add_special_tokens=False) for text in PROBES] == expected


@pytest.mark.parametrize("puts_bos", [True, False])
def test_bos_is_as_in_training_whatever_the_class_does_by_itself(
    tmp_path: Path, puts_bos: bool
) -> None:
    content = Tokenizer.from_str(tokenizer_json())
    if not puts_bos:  # the template puts one, and tokenizer_config.json says that none is put
        template = processors.TemplateProcessing("<|begin|> $A", special_tokens=[("<|begin|>", 0)])
        content.post_processor = template
    directory = write_tokenizer(tmp_path, "llama", content.to_str(), add_bos_token=puts_bos)
    assert open_tokenizer(directory).bos == (0 if puts_bos else None)
    found = compare_here(directory)
    assert found is not None
    if found.add_bos is not None:
        assert found.add_bos is puts_bos
        assert "load it with add_bos_token=" in found.differences[0]
    ids = load_as_trained(directory).encode("The small")
    assert (ids[0] == 0) is puts_bos


def test_an_ordinary_tokenizer_is_read_alike_in_a_process_of_its_own(tmp_path: Path) -> None:
    train_tokenizer(tmp_path)
    found = compare_tokenization(tmp_path)
    assert found is not None
    assert (found.loader, found.add_bos, found.differences) == ("AutoTokenizer", None, ())
    assert compare_tokenization(tmp_path / "nowhere") is None


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that transformers reads with other ids and without the BOS of its training."""
    directory = tmp_path_factory.mktemp("model")
    build("llama", vocab_size=ROWS, bos_token_id=0, eos_token_id=1).save_pretrained(directory)
    return write_tokenizer(directory, tokenizer_class="GPT2Tokenizer", add_bos_token=True)


OTHER_IDS = "GPT2Tokenizer of transformers gives other ids"
OTHER_BOS = "Documents are prepared with BOS, id 0, before them, and GPT2Tokenizer"


def test_inherit_verify_and_prepare_say_where_users_get_other_ids(
    model: Path, tmp_path: Path
) -> None:
    with pytest.warns(UserWarning, match=OTHER_IDS):
        api.inherit(model, 2, tmp_path / "cut", progress=False)
    findings = {f.part: f for f in api.verify(tmp_path / "cut", progress=False).findings}
    assert findings["tokenizer"].text.startswith(OTHER_IDS)
    assert not findings["tokenizer"].proven

    (tmp_path / "text.jsonl").write_text(
        "".join(json.dumps({"text": f"{i} {text}"}) + "\n" for i in range(9) for text in PROBES)
    )
    said: list[str] = []
    api.prepare(
        tmp_path / "text.jsonl",
        model,
        tmp_path / "tokens",
        seq_len=8,
        val_fraction=0.2,
        progress=lambda event: said.append(event.message),
    )
    assert any(text.startswith(OTHER_IDS) for text in said)
    assert any(text.startswith(OTHER_BOS) for text in said)


def test_tasks_are_asked_in_the_ids_and_with_the_bos_of_the_training(
    model: Path, tmp_path: Path
) -> None:
    def score(add_bos: str) -> dict[str, Any]:
        found = api.evaluate(
            model,
            tasks=["piqa"],
            task_data=write_tasks(tmp_path / "tasks"),
            out=tmp_path / add_bos,
            add_bos=add_bos,
            progress=False,
        )
        return found.as_json()["models"][0]

    asked = score("auto")
    (answer,) = asked["scores"]
    assert answer["facts"]["begins_with_bos"] is answer["facts"]["trained_with_bos"] is True
    assert answer["key"]["loader"] == "PreTrainedTokenizerFast"
    assert answer["key"]["begins_with_bos"] is True
    assert not any("--add-bos" in note for note in _notes(asked))
    assert any("not as in training (--add-bos)" in note for note in _notes(score("no")))


def _notes(model: dict[str, Any]) -> list[str]:
    return scores_table([EvaluatedModelRecord.model_validate(model)]).notes


def test_a_run_notes_what_users_and_tasks_get_otherwise(model: Path, tmp_path: Path) -> None:
    def notes(bos: int | None) -> list[str]:
        return run_notes._tokenization_notes(
            model, TokenDirectory(tmp_path, _EMPTY | {"policy": {"bos": bos}})
        )

    assert [note.split(",")[0][:29] for note in notes(0)] == [OTHER_IDS[:29], OTHER_BOS[:29]]
    assert "imported tokens have no BOS" in notes(None)[-1]


_EMPTY = {"embedding_rows": ROWS, "files": []}
