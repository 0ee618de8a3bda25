"""Write the model card of a trained target: metadata for the Hub, results, provenance, limits."""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from inheritune.errors import SourceError
from inheritune.model_files.card import join_front_matter
from inheritune.publishing.card_facts import card_facts
from inheritune.publishing.card_metadata import PAPER, TaskScore, metadata, task_scores
from inheritune.reporting.embed import presentable
from inheritune.reporting.gains_table import gains_sentence, gains_table
from inheritune.reporting.quantities import amount, duration, flops
from inheritune.reporting.remarks import remarks
from inheritune.reporting.run_tables import rounds_table, variants_table
from inheritune.reporting.usage import as_code, code, prompt_of
from inheritune.reporting.verdict import verdict
from inheritune.run_directory import Run
from inheritune.run_record.record import RunRecord, read_run_json
from inheritune.run_record.trainings import TokenFacts
from inheritune.surgery.record import quantisation_sentence
from inheritune.system.files import write_bytes
from inheritune.system.strict_json import MODEL_FILE, read_json_object

_LONGEST_NAME = 200  # characters, in the text
_LONGEST_SAMPLE = 800
_FIGURES = ("val-loss.png", "variants.png")  # the first that the report has is shown
_PATH_LINE = re.compile(r"^path = .*$", re.MULTILINE)


def write_card(run_root: Path, figures: Mapping[str, bytes]) -> Path | None:
    """Write ``target/README.md`` and its figure beside it; None without a target.

    Args:
        figures: PNG by name of file; one of them is shown.

    Raises:
        DataError: run.json cannot be read, or something in the directory leads out of it.
    """
    target = Run.open(run_root).target
    if not (target / "config.json").is_file():
        return None
    record = RunRecord.model_validate(presentable(read_run_json(run_root)))
    figure = next((name for name in _FIGURES if name in figures), None)
    if figure is not None:
        (target / "figures").mkdir(exist_ok=True)
        write_bytes(target / "figures" / figure, figures[figure])
    content = card_text(
        record,
        _json_of(target / "inherit.json"),
        [] if figure is None else [figure],
        target.as_posix(),
        _json_of(target / "config.json"),
    )
    write_bytes(target / "README.md", content.encode())
    return target / "README.md"


def _json_of(path: Path) -> dict[str, Any]:
    with suppress(SourceError):
        return read_json_object(path, MODEL_FILE.times(10))
    return {}


def card_text(
    record: RunRecord,
    inherited: Mapping[str, Any],
    figures: list[str],
    path: str = ".",
    config: Mapping[str, Any] | None = None,
) -> str:
    """Compose README.md of a trained target, as the Hugging Face Hub shows it.

    Args:
        record: run.json as `presentable` leaves it.
        inherited: inherit.json of the target; any field may be missing or wrong.
        figures: File names below ``figures/`` of the target.
        path: Where the code on the card loads the target from; `push` puts its id on the Hub there.
        config: config.json of the target; any field may be missing or wrong.

    Returns:
        Markdown with YAML front matter. Text from the record is set as code, so that it can contain
        no markup.
    """
    scores = task_scores(record)
    facts = [(key, _plain(fact)) for key, fact in card_facts(record, config or {}, scores)]
    if base := record.reference.model:
        facts.insert(0, ("base model", _code(base)))
    parts = [
        _opening(record),
        "".join(["| | |\n|---|---|\n", *(f"| {key} | {value} |\n" for key, value in facts)]),
        f"```python\n{code(path, prompt_of(record))}```\n\n"
        "No code of inheritune, and none of this repository, is needed or run.\n",
        *[f"![{_alt(name)}](figures/{name})\n" for name in figures],
        _PURPOSE,
        _sample(record),
        _training_data(record.tokens),
        _limits(record),
        _details("Results of all variants", _results(record)),
        _details("Size and speed", _gains(record)),
        _details("Task scores", _score_table(scores)),
        _details("Where each layer comes from", _layers(inherited)),
        _details("Recipe", _recipe(record)),
        _details("Provenance", _provenance(record)),
        f"Made with inheritune, which implements [Inheritune](https://arxiv.org/abs/{PAPER}).\n",
    ]
    body = "\n".join(part for part in parts if part)
    return join_front_matter(metadata(record), f"\n{body}")


# --- body ---

_PURPOSE = """## What it is for

- **For**: continuing text like its training text, at less cost than its base model; a start for
  fine-tuning; research on models of fewer layers.
- **Not for**: instructions or chat, unless it is trained further; facts without a check;
  decisions about people; languages or kinds of text that it was not trained on.
"""


def _details(title: str, content: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{content}\n</details>\n" if content else ""


def _opening(record: RunRecord) -> str:
    layers, total = record.result.layers, record.result.reference_layers
    size = f"{layers} of {total} layers" if layers and total else "Fewer layers"
    title = f"# {size} of {_code(record.reference.model or 'a reference')}\n"
    # A scaled-down run is no result of the method: the card says so first.
    warning = f"{_plain(record.scaled[:1000])}\n\n" if record.scaled else ""
    return f"{title}\n{warning}{_plain(verdict(record))}\n"


def _sample(record: RunRecord) -> str:
    samples = [s for s in record.samples if s.model in (record.target_name, "target") and s.prompt]
    if not samples:
        return ""
    prompt, text = samples[0].prompt or "", samples[0].text or ""
    shown = (prompt + text.removeprefix(prompt))[:_LONGEST_SAMPLE]
    return f"## A sample\n\nThe prompt: {_code(prompt)}\n\n{_fenced(shown)}"


def _training_data(tokens: TokenFacts) -> str:
    source = _source(tokens)
    if not source:
        return ""
    count = f", {amount(tokens.train_tokens)} tokens" if tokens.train_tokens else ""
    held_out = f" {amount(tokens.val_tokens)} more were held out." if tokens.val_tokens else ""
    name = "Python's standard library" if source == "stdlib" else f"Text of {_code(source)}"
    return f"## Training data\n\n{name}{count}.{held_out}\n"


def _results(record: RunRecord) -> str:
    sentences = "".join(f"- {_plain(sentence)}\n" for sentence in remarks(record))
    tables = [variants_table(record).markdown()] if record.variants else []
    if record.rounds:
        tables += ["Every size of the target that was trained:\n", rounds_table(record).markdown()]
    return "\n".join([sentences, *tables])


def _gains(record: RunRecord) -> str:
    if record.gains is None or not record.gains.models:
        return ""
    sentence = _plain(gains_sentence(record.gains))
    return f"{sentence}\n\n{gains_table(record.gains).transposed().markdown()}"


def with_path(card: str, path: str) -> str:
    """Return a card whose code loads the model from a path, or from an id on the Hub."""
    return _PATH_LINE.sub(lambda match: f"path = {as_code(path)}", card, count=1)


def _score_table(scores: list[TaskScore]) -> str:
    if not scores:
        return ""
    lines = ["| task | metric | score | standard error | shots |", "|---|---|---:|---:|---:|"]
    for score in scores:
        error = score.args.get("standard_error")
        shots = score.args.get("num_fewshot")
        cells = [_code(score.task), _code(score.metric), f"{score.value:.4f}"]
        cells += ["—" if error is None else f"{error:.4f}", "—" if shots is None else str(shots)]
        lines.append("| " + " | ".join(cells) + " |")
    for task, limit in {score.task: score.args.get("limit") for score in scores}.items():
        if limit is not None:
            lines += ["", f"Of {_code(task)}, only the first {limit} questions were asked."]
    return "\n".join(lines) + "\n"


def _layers(inherited: Mapping[str, Any]) -> str:
    layer_map = inherited.get("layer_map") or []
    if not layer_map or type(layer_map) is not list or any(type(i) is not int for i in layer_map):
        return ""
    reference = inherited.get("reference")
    reference = reference if isinstance(reference, dict) else {}
    commit = f" at commit {_code(reference['revision'])}" if reference.get("revision") else ""
    pairs = ", ".join(f"{i} ← {source}" for i, source in enumerate(layer_map[:300]))
    return (
        "Before training, layers (left, from 0) were those of "
        f"{_code(reference.get('name') or 'the reference')}{commit} (right), and embeddings, final "
        f"norm and head were its own: {pairs}. `inherit.json` names the source of every tensor."
        f"{quantisation_sentence(reference)}\n"
    )


def _recipe(record: RunRecord) -> str:
    recipe = record.recipe
    sections = {key: recipe[key] for key in ("inherit", "data", "train", "grow") if key in recipe}
    return _fenced(json.dumps(sections, indent=1, ensure_ascii=False)[:20_000], "json")


def _fenced(text: str, language: str = "") -> str:
    """Set a text as a code block that nothing in it can end."""
    fence = "`" * max([3, *(len(ticks) + 1 for ticks in re.findall("`+", text))])
    return f"{fence}{language}\n{text}\n{fence}\n"


def _provenance(record: RunRecord) -> str:
    result, reference, tokens = record.result, record.reference, record.tokens
    machine, settings = record.machine, record.target.settings
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    identifiers = {
        "reference": reference.model,
        "its commit": reference.revision,
        "its digest (XXH3)": reference.digest,
        "text": _source(tokens),
        "its commits": _commits(tokens),
        "text's fingerprint": tokens.fingerprint,
    }
    facts = {
        "tokens, all trainings of the run": amount(result.tokens),
        "FLOPs, all trainings of the run": flops(result.flops),
        "time": duration(result.seconds),
        "hardware": settings.get("device_name") or machine.get("processor"),
        "processes": settings.get("processes") or record.processes,  # not of a later start
        "cost": _cost(record),
        "versions": versions,
        "made": record.finished_at or record.started_at,
    }
    shown = {key: _code(value) for key, value in identifiers.items() if value}
    shown |= {key: _plain(str(v)) for key, v in facts.items() if v not in (None, "", "—")}
    lines = [f"| {key} | {value} |" for key, value in shown.items()]
    return "\n".join(["| | |", "|---|---|", *lines, ""])


def _source(tokens: TokenFacts) -> str:
    source = tokens.source
    if isinstance(source, str):
        return source
    return json.dumps(source, ensure_ascii=False)[:1000] if source else ""


def _commits(tokens: TokenFacts) -> str:
    commits = tokens.commits
    return ", ".join(str(c)[:40] for c in commits if c) if isinstance(commits, list) else ""


def _cost(record: RunRecord) -> str:
    """Format the price of the run; empty if the recipe names no hourly rate."""
    price = record.result.price
    if price is None or price.paid is None:
        return ""
    return f"{price.paid:,.2f} {price.currency or ''}".strip()


def _limits(record: RunRecord) -> str:
    val_text = "held-out text of the run's own source"
    if record.recipe_section("data").get("val_source"):
        val_text = "text that the run took as its validation set"
    limits = [
        "This model inherits the errors of its reference along with its layers. It has not been "
        "aligned, filtered or checked for safety since.",
        f"val_loss was measured on {val_text}; on other text it differs.",
    ]
    if not task_scores(record):
        limits.append("No task was evaluated.")
    overlap = record.tokens.overlap
    if overlap is not None and overlap.share is not None:
        limits.append(
            f"{overlap.share:.1%} of the held-out 13-token sequences also occur in the training "
            "text."
        )
    limits += [_plain(note[:1000]) for note in record.notes[:20]]
    return "\n".join(["## Limits\n", *(f"- {limit}" for limit in limits), ""])


def _code(value: object) -> str:
    """Set text from the record as code on one line, which can end neither cell nor front matter."""
    flat = " ".join(str(value)[:_LONGEST_NAME].split()).replace("`", "'").replace("|", "¦")
    return f"`{flat or ' '}`"


def _plain(text: str) -> str:
    flat = " ".join(text.split())
    for mark in "\\`*_[]<>{}|#":
        flat = flat.replace(mark, f"\\{mark}" if mark != "<" else "&lt;")
    return flat


def _alt(name: str) -> str:
    plain = name.removesuffix(".png").replace("-", " ")
    return "".join(c if c.isalnum() or c == " " else " " for c in plain)
