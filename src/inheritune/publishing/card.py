"""Write the model card of a trained target: metadata for the Hub, results, provenance, limits."""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from inheritune.errors import SourceError
from inheritune.model_files.card import join_front_matter
from inheritune.publishing.card_metadata import PAPER, metadata, task_scores
from inheritune.reporting.embed import presentable
from inheritune.reporting.gains_table import gains_sentence, gains_table
from inheritune.reporting.quantities import amount, duration, flops
from inheritune.reporting.run_tables import rounds_table, variants_table
from inheritune.reporting.verdict import remarks, verdict
from inheritune.run_directory import Run
from inheritune.run_record.record import RunRecord, read_run_json
from inheritune.run_record.trainings import TokenFacts
from inheritune.surgery.record import quantisation_sentence
from inheritune.system.files import write_bytes
from inheritune.system.strict_json import MODEL_FILE, read_json_object

_LONGEST_NAME = 200  # characters, in the text
_PATH_LINE = re.compile(r"^path = .*$", re.MULTILINE)


def write_card(run_root: Path, figures: Mapping[str, bytes]) -> Path | None:
    """Write ``target/README.md`` and the report's figures beside it; None without a target.

    Args:
        figures: PNG by name of file; other pictures of the report are none of ours.

    Raises:
        DataError: run.json cannot be read, or something in the directory leads out of it.
    """
    target = Run.open(run_root).target
    if not (target / "config.json").is_file():
        return None
    record = RunRecord.model_validate(presentable(read_run_json(run_root)))
    inherited: dict[str, Any] = {}
    with suppress(SourceError):
        inherited = read_json_object(target / "inherit.json", MODEL_FILE.times(10))
    for name, picture in figures.items():
        (target / "figures").mkdir(exist_ok=True)
        write_bytes(target / "figures" / name, picture)
    content = card_text(record, inherited, sorted(figures), target.as_posix())
    write_bytes(target / "README.md", content.encode())
    return target / "README.md"


def card_text(
    record: RunRecord, inherited: Mapping[str, Any], figures: list[str], path: str = "."
) -> str:
    """Compose README.md of a trained target, as the Hugging Face Hub shows it.

    Args:
        record: run.json as `presentable` leaves it.
        inherited: inherit.json of the target; any field may be missing or wrong.
        figures: File names below ``figures/`` of the target.
        path: Where the code on the card loads the target from; `push` puts its id on the Hub there.

    Returns:
        Markdown with YAML front matter. Text from the record is set as code, so that it can contain
        no markup.
    """
    parts = [
        _opening(record),
        *[f"![{_alt(name)}](figures/{name})\n" for name in figures],
        _use(record, path),
        "## Results\n\n" + "".join(f"- {_plain(sentence)}\n" for sentence in remarks(record)),
        variants_table(record).markdown(),
        _gains(record),
        "Every size of the target that was trained:\n",
        rounds_table(record).markdown(),
        _scores(record),
        _layers(inherited),
        _recipe(record),
        _provenance(record),
        _limits(record),
    ]
    body = "\n".join(part for part in parts if part)
    return join_front_matter(metadata(record), f"\n{body}")


# --- body ---


def _opening(record: RunRecord) -> str:
    layers, total = record.result.layers, record.result.reference_layers
    size = f"{layers} of {total} layers" if layers and total else "Fewer layers"
    title = f"# {size} of {_code(record.reference.model or 'a reference')}\n"
    # A scaled-down run is no result of the method: the card says so first.
    warning = f"{_plain(record.scaled[:1000])}\n\n" if record.scaled else ""
    return f"{title}\n{warning}{_plain(verdict(record))}\n"


def _use(record: RunRecord, path: str) -> str:
    prompts = record.recipe_section("report").get("prompts")
    first = prompts[0] if isinstance(prompts, list) and prompts else None
    prompt = _as_code(first[:_LONGEST_NAME] if isinstance(first, str) else "Once upon a time")
    return (
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"path = {_as_code(path)}\n"
        "tokenizer = AutoTokenizer.from_pretrained(path)\n"
        "model = AutoModelForCausalLM.from_pretrained(path)\n"
        f'inputs = tokenizer({prompt}, return_tensors="pt")\n'
        "output = model.generate(**inputs, max_new_tokens=40, do_sample=False)\n"
        "print(tokenizer.decode(output[0], skip_special_tokens=True))\n```\n\n"
        "No code of inheritune, and none of this repository, is needed or run.\n"
    )


def _gains(record: RunRecord) -> str:
    if record.gains is None or not record.gains.models:
        return ""
    sentence = _plain(gains_sentence(record.gains))
    table = gains_table(record.gains).transposed().markdown()
    return f"## Size and speed\n\n{sentence}\n\n{table}"


def with_path(card: str, path: str) -> str:
    """Return a card whose code loads the model from a path, or from an id on the Hub."""
    return _PATH_LINE.sub(lambda match: f"path = {_as_code(path)}", card, count=1)


def _as_code(text: str) -> str:
    # The escapes of JSON are those of Python, and no line of the block can end it.
    return json.dumps(text, ensure_ascii=False)


def _scores(record: RunRecord) -> str:
    scores = task_scores(record)
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
        "## Layers\n\nBefore training, layers (left, from 0) were those of "
        f"{_code(reference.get('name') or 'the reference')}{commit} (right), and embeddings, final "
        f"norm and head were its own: {pairs}. `inherit.json` names the source of every tensor."
        f"{quantisation_sentence(reference)}\n"
    )


def _recipe(record: RunRecord) -> str:
    recipe = record.recipe
    sections = {key: recipe[key] for key in ("inherit", "data", "train", "grow") if key in recipe}
    block = json.dumps(sections, indent=1, ensure_ascii=False)[:20_000]
    fence = "`" * max([3, *(len(ticks) + 1 for ticks in re.findall("`+", block))])
    return f"## Recipe\n\n{fence}json\n{block}\n{fence}\n"


def _provenance(record: RunRecord) -> str:
    result, reference, tokens = record.result, record.reference, record.tokens
    machine, settings = record.machine, record.target.settings
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    facts = {
        "reference": reference.model,
        "its commit": reference.revision,
        "its digest (XXH3)": reference.digest,
        "text": _source(tokens),
        "its commits": _commits(tokens),
        "text's fingerprint": tokens.fingerprint,
        "tokens, all trainings of the run": amount(result.tokens),
        "FLOPs, all trainings of the run": flops(result.flops),
        "time": duration(result.seconds),
        "hardware": settings.get("device_name") or machine.get("processor"),
        "processes": settings.get("processes") or record.processes,  # not of a later start
        "cost": _cost(record),
        "versions": versions,
        "made": record.finished_at or record.started_at,
    }
    lines = [
        f"| {key} | {_code(value)} |"
        for key, value in facts.items()
        if value not in (None, "", "—")
    ]
    return "\n".join(["## Provenance\n", "| | |", "|---|---|", *lines, ""])


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
            f"{overlap.share:.1%} of the held-out 13-grams also occur in the training text."
        )
    limits += [_plain(note[:1000]) for note in record.notes[:20]]
    origin = (
        f"Made with inheritune, which implements [Inheritune](https://arxiv.org/abs/{PAPER}).\n"
    )
    return "\n".join(["## Limits\n", *(f"- {limit}" for limit in limits), "", origin])


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
