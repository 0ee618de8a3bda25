"""One model type through everything: shrunk, written, cut, loaded again, compared bit for bit."""

import copy
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from support import proof, shrink
from support.decoder_types import model_class

from inheritune.errors import InherituneError
from inheritune.model_files.directory import open_model
from inheritune.model_files.refusals import refuse_unsupported_type
from inheritune.surgery.cut import inherit
from inheritune.verification.model import verify_model

__all__ = ["Cut", "Row", "quiet", "run", "run_given", "run_moved"]


@dataclass(frozen=True)
class Cut:
    """What happened with one number of layers.

    Attributes:
        layers: How many were asked for.
        refusal: Our own error, if there was one; else the target was proved equal.
        edits: Config fields that changed.
    """

    layers: int
    refusal: str = ""
    edits: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """What is known of one model type.

    Attributes:
        model_type: Its key in transformers.
        architecture: The class tried.
        total: Layers of the shrunk reference.
        cuts: One for each number of layers tried.
        untested: Why the type could not be built or run here.
        wrong: What differed; empty, or the product is broken.
        notes: What the class itself is not able to.
    """

    model_type: str
    architecture: str = ""
    total: int = 0
    cuts: tuple[Cut, ...] = ()
    untested: str = ""
    wrong: str = ""
    notes: tuple[str, ...] = ()

    @property
    def result(self) -> str:
        """``exact`` when some n < N is right and no n is wrong."""
        if self.wrong:
            return "wrong"
        if self.untested:
            return "untested"
        right = any(not cut.refusal and cut.layers < self.total for cut in self.cuts)
        return "exact" if right else "refused"


def run(model_type: str, work: Path, every: bool = False) -> Row:
    """Try a type at up to three numbers of layers, and at all of them where one is refused.

    Args:
        model_type: Key of transformers' config mapping.
        work: An empty directory.
        every: Try every number of layers.
    """
    name = ""
    try:
        with quiet():
            config = shrink.tiny_config(model_type)
            found = model_class(model_type, config)
            name = found.__name__
            if refusal := _refused_by_config(config):
                return Row(model_type, name, cuts=(Cut(0, refusal),))
            proof.save_tiny(found, config, work / "reference")
        return _try(model_type, found, config, work, every)
    except ImportError as error:
        return Row(model_type, name, untested=f"needs {_package(error)}")


def run_given(given: Mapping[str, Any], work: Path, every: bool = False) -> Row:
    """Try a released config, shrunk, in its own words."""
    with quiet():
        settings = shrink.tiny_settings(dict(given))
        config = transformers.AutoConfig.for_model(**copy.deepcopy(settings))
        found = model_class(config.model_type, config)
        proof.save_tiny(found, config, work / "reference")
    settings |= {"architectures": [found.__name__], "dtype": "float32"}
    settings.pop("torch_dtype", None)
    (work / "reference" / "config.json").write_text(json.dumps(settings, indent=2), "utf-8")
    return _try(config.model_type, found, config, work, every)


def run_moved(model_type: str, work: Path) -> dict[tuple[int, ...], str]:
    """Try to move layers of a type: first and last, and the last two.

    Returns:
        By selection, our own refusal, or an empty text where every layer was proved to compute what
        it does in the reference.
    """
    try:
        with quiet():
            config = shrink.tiny_config(model_type)
            proof.save_tiny(model_class(model_type, config), config, work / "reference")
        reference = open_model(str(work / "reference"))
    except Exception:
        return {}  # a type that cannot be built or opened here: its row in the document says why
    found = {}
    for kept in {(0, reference.layers - 1), (reference.layers - 2, reference.layers - 1)}:
        with quiet():
            try:
                target = inherit(reference, kept, work / "-".join(map(str, kept)))
            except InherituneError as error:
                found[kept] = _said(error, reference.path)
                continue
            proofs = {finding.part: finding for finding in verify_model(target, reference)}
        skipped = not proofs["function"].proven and "skips layers" in proofs["function"].text
        if not proofs["function"].proven and not skipped:
            raise proof.WrongError(f"{kept}: {proofs['function'].text}")
        found[kept] = ""
    return found


def _try(model_type: str, found: Any, config: Any, work: Path, every: bool) -> Row:
    name = found.__name__
    if refusal := _refused_at_once(work / "reference"):
        return Row(model_type, name, cuts=(Cut(0, refusal),))
    with quiet():
        reference = proof.load(found, work / "reference")
        path, total = proof.layer_list(reference, config)
        expected = proof.observe(reference, path)
        able = proof.what_it_generates(reference)
    waiting = list(range(1, total + 1)) if every else sorted({1, total // 2, total})
    cuts: dict[int, Cut] = {}
    wrong = ""
    while waiting and not wrong:
        layers = waiting.pop(0)
        try:
            cuts[layers] = _cut(work, layers, found, path, expected, able)
        except proof.WrongError as error:
            wrong = f"n = {layers}: {error}"
        if layers in cuts and cuts[layers].refusal:
            waiting += [n for n in range(1, total) if n not in cuts and n not in waiting]
    done = tuple(cuts[n] for n in sorted(cuts))
    return Row(model_type, name, total, done, wrong=wrong, notes=tuple(able.notes))


def _refused_by_config(config: Any) -> str:
    """Why the product refuses every model of this kind. Not all of their classes can be built."""
    raw = config.to_dict()
    try:
        refuse_unsupported_type(raw, Path("the reference"))
    except InherituneError as error:
        return _said(error, Path("the reference"))
    return ""


def _refused_at_once(directory: Path) -> str:
    try:
        open_model(str(directory))
    except InherituneError as error:
        return _said(error, directory)
    return ""


def _said(error: InherituneError, directory: Path) -> str:
    text = " ".join([error.message, error.hint or ""]).strip()
    return text.replace(str(directory), "the reference")


def _cut(
    work: Path, layers: int, found: Any, path: str, expected: proof.Seen, able: proof.Generation
) -> Cut:
    out = work / f"first-{layers}"
    try:
        with quiet():
            inherit(open_model(str(work / "reference")), layers, out)
    except InherituneError as error:
        return Cut(layers, _said(error, work / "reference"))
    except Exception as error:
        raise proof.WrongError(f"crash in inherit: {proof.named(error)}") from error
    with quiet():
        try:
            target = proof.load(found, out)
            observed = proof.observe(target, path)
        except proof.WrongError:
            raise
        except Exception as error:
            raise proof.WrongError(f"the target does not run: {proof.named(error)}") from error
        if observed.outer == expected.outer:
            proof.prove(observed, expected, layers)
        else:
            proof.prove_alone(target, path, expected, layers)
        if not bool(torch.isfinite(observed.logits).all()):
            raise proof.WrongError("logits are not finite")
        proof.prove_generation(target, able)
    record = json.loads((out / "inherit.json").read_text("utf-8"))
    if not record["check"].startswith("complete"):
        raise proof.WrongError(f"the class check was skipped: {record['check']}")
    return Cut(layers, edits=tuple(edit["key"] for edit in record["config_edits"]))


def _package(error: ImportError) -> str:
    # What it lists first may be there elsewhere: an image library, before the models for images.
    found = re.findall(r"requires the (\w+) library", str(error))
    return found[-1] if found else str(error).splitlines()[0]


@contextmanager
def quiet() -> Iterator[None]:
    """What transformers and the product say about models that are odd on purpose."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
