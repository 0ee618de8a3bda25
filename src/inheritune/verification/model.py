"""Verify a model: its bytes against its record, and against the reference it was cut from."""

import filecmp
import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import xxhash

from inheritune.errors import SourceError, escape, listed
from inheritune.model_files.cast import cast
from inheritune.model_files.directory import ModelDirectory
from inheritune.model_files.layers import STRAY
from inheritune.model_files.safe_path import INDEX
from inheritune.model_files.scan import Scan, not_finite, scan
from inheritune.model_files.write import TargetTensor, read_chunks
from inheritune.surgery.class_check.ask_class import refuse_broken_values
from inheritune.surgery.origin import as_cut_from
from inheritune.surgery.plan import InheritPlan, plan_inherit
from inheritune.surgery.record import read_inherit_record
from inheritune.surgery.repaired import repaired_names
from inheritune.system.strict_json import MODEL_FILE, read_json_object
from inheritune.verification.repair import check_repair
from inheritune.verification.run_model import Finding, check_class, check_tokenizer, run_target

_NOT_COMPARED = Finding("bytes", "not compared: the target was trained", proven=False)


def verify_model(
    target: ModelDirectory, reference: ModelDirectory | None = None
) -> Iterator[Finding]:
    """Verify a target with a record, part by part.

    Its bytes are compared with the digests in ``inherit.json``. With the reference, they are also
    compared with their source, and config and layers with the reference's, and a repair is fitted
    again in part.

    Raises:
        SourceError: Something differs; the message names the first difference.
    """
    record = read_inherit_record(target)
    if reference is not None:
        reference = as_cut_from(target, reference)
    path = target.path / "training.json"
    training = None
    if path.is_file():
        training = read_json_object(path, MODEL_FILE.times(20), "the record of its training")
    _refuse_other_names(target, record["tensors"], "its record")
    yield Finding("names", f"{len(target.tensors)} tensors, as recorded")
    sha256 = any("sha256" in entry for entry in record["tensors"].values())
    scans = scan(target.tensors.values(), sha256=sha256)
    yield _judge_values(target, scans)
    yield _compare_digests(scans, record, training)
    plan = None if reference is None else _plan_again(record, reference)
    is_trained = training is not None and not _are_digests_of_start(record, training)
    if reference is not None and plan is not None:
        compare = _compare_grown if "grown_from" in record else _compare_reference
        yield from compare(target, record, plan, reference, {} if is_trained else scans)
    yield from check_repair(target, reference, record, is_trained)
    yield from check_tokenizer(target)
    yield check_class(target, reference, plan)
    yield from run_target(target, record, reference, trained=is_trained)


def verify_unrecorded_model(model: ModelDirectory) -> Iterator[Finding]:
    """Verify a trained model without a record: that its values are finite and that it runs."""
    yield _judge_values(model, scan(model.tensors.values()))
    yield Finding("digests", "not recorded by a training without a recipe", proven=False)
    yield from check_tokenizer(model)
    yield check_class(model, None, None)
    yield from run_target(model, {}, None, trained=True)


def _judge_values(model: ModelDirectory, scans: Mapping[str, Scan]) -> Finding:
    if not (broken := refuse_broken_values(model, scans)):
        return Finding("values", "all finite")
    return Finding("values", f"all finite but {len(broken)} tensors that the class does not use")


def _refuse_other_names(target: ModelDirectory, names: Mapping[str, Any], where: str) -> None:
    if different := sorted(names.keys() ^ target.tensors.keys()):
        name = different[0]
        has = "lacks" if name in names else "holds"
        does = "names" if name in names else "does not name"
        raise SourceError(f"{target.path} {has} {escape(name)}, which {where} {does}.")


# --- bytes ---


def _compare_digests(
    scans: Mapping[str, Scan], record: Mapping[str, Any], training: Mapping[str, Any] | None
) -> Finding:
    recorded, kinds, when = record["tensors"], ["xxh3", "sha256"], "recorded was"
    if training is not None:  # the record of the training has digests of the trained weights
        if not isinstance(trained := training.get("tensors"), dict):
            return Finding("digests", "not compared: the target was trained", proven=False)
        recorded, kinds = {name: {"xxh3": digest} for name, digest in trained.items()}, ["xxh3"]
        when = "after its training it was"
    for name, kind in product(scans, kinds):
        digest, expected = getattr(scans[name], kind), recorded.get(name, {}).get(kind)
        if digest is not None and digest != expected:
            way_out = "write" if training is None else "copy"
            raise SourceError(
                f"{escape(name)} has the {kind} digest {digest}; {when} {escape(expected)}.",
                f"The file was changed or damaged: {way_out} the target again.",
            )
    suffix = "as recorded" if training is None else "as after their training"
    return Finding("digests", f"{len(scans)} tensors, {suffix}")


def _are_digests_of_start(record: Mapping[str, Any], training: Mapping[str, Any]) -> bool:
    """Whether no weight was changed since the target was written, though it was published."""
    ends = training.get("tensors")
    starts = {name: entry.get("xxh3") for name, entry in record["tensors"].items()}
    return bool(starts == ends)


def _plan_again(record: Mapping[str, Any], reference: ModelDirectory) -> InheritPlan:
    layer_map: Sequence[int] = record["layer_map"]
    if layer_map[-1] >= reference.layers:
        raise SourceError(
            f"the record names layer {layer_map[-1]}, but {reference.name} has {reference.layers}.",
            "The target was cut from another model.",
        )
    return plan_inherit(reference, layer_map, dtype=record.get("dtype"), by_class=True)


def _compare_reference(
    target: ModelDirectory,
    record: Mapping[str, Any],
    plan: InheritPlan,
    reference: ModelDirectory,
    scans: Mapping[str, Scan],
) -> Iterator[Finding]:
    _refuse_other_names(target, {t.name: t for t in plan.tensors}, "the cut reference")
    yield _compare_config(target, plan, is_trained=not scans)
    if scans:
        yield _compare_bytes(target, record, plan, reference, scans)
    else:
        yield _NOT_COMPARED
    yield _compare_side_files(target, record, reference)


def _compare_side_files(
    target: ModelDirectory, record: Mapping[str, Any], reference: ModelDirectory
) -> Finding:
    """Compare every file of the reference that the record does not name as left behind.

    What `inherit` took over is not asked again here: a file that it forgot has to be found.
    """
    left = record.get("left_behind")
    known = left if isinstance(left, list) else reference.left_behind  # nothing, or an old record
    if reference.text_only:  # what a run copied of it had been left behind before
        known = sorted({*map(str, known), *reference.left_behind})
    absent = {"config.json", INDEX, *reference.metadata, *map(str, known)}
    compared, missing = 0, []
    for path in sorted(reference.path.rglob("*")):
        name = path.relative_to(reference.path).as_posix()
        is_hidden = any(part.startswith(".") for part in name.split("/"))
        if is_hidden or name in absent or f"{name.partition('/')[0]}/" in absent:
            continue
        copy = target.path / name
        if path.is_file() and not copy.exists():
            missing.append(name)
        elif path.is_file() and not filecmp.cmp(path, copy, shallow=False):
            raise SourceError(f"{copy} is not what it is in the reference.")
        compared += path.is_file()
    if missing and left is not None:
        raise SourceError(
            f"{target.path} lacks {listed(missing)} of the reference.", "Write the target again."
        )
    text = f"{compared - len(missing)} files equal the reference's"
    text += f"; not there: {listed(missing)}" if missing else ""
    text += f"; left behind: {listed(known)}" if known else ""
    return Finding("side files", text, proven=not missing)


def _compare_config(target: ModelDirectory, plan: InheritPlan, is_trained: bool) -> Finding:
    config, expected = dict(target.config), dict(plan.config)
    if is_trained:  # and saved in the precision of its training
        for either in (config, expected):
            for key in ("dtype", "torch_dtype"):
                either.pop(key, None)
    _refuse_other_config(config, expected, "")
    edits = len(plan.edits)
    return Finding("config", f"the reference's but for {edits} change{'s' * (edits != 1)}")


def _refuse_other_config(value: Any, expected: Any, path: str) -> None:
    if isinstance(value, dict) and isinstance(expected, dict):
        for key in {**expected, **value}:
            key_path = f"{path}.{key}" if path else str(key)
            _refuse_other_config(value.get(key), expected.get(key), key_path)
    elif value != expected:
        raise SourceError(
            f"config.json says {escape(path)} = {escape(repr(value), 60)}; the reference's, cut to "
            f"these layers, says {escape(repr(expected), 60)}.",
            "The target was changed, or cut from another model.",
        )


def _compare_bytes(
    target: ModelDirectory,
    record: Mapping[str, Any],
    plan: InheritPlan,
    reference: ModelDirectory,
    scans: Mapping[str, Scan],
) -> Finding:
    fresh = {name for name, entry in record["tensors"].items() if entry.get("source") is None}
    repaired = repaired_names(record)
    inherited = [tensor for tensor in plan.tensors if tensor.name not in fresh]
    reference.download(tensor.source for tensor in inherited)
    for tensor in plan.tensors:
        stored = target.tensors[tensor.name]
        if (tensor.dtype, tensor.shape) != (stored.dtype, stored.shape):
            raise SourceError(
                f"{escape(stored.name)} is {stored.dtype} {stored.shape}; from the reference it "
                f"would be {tensor.dtype} {tensor.shape}."
            )
        if tensor.name not in fresh and _source_digest(tensor) != scans[tensor.name].xxh3:
            raise SourceError(
                f"{escape(tensor.name)} differs from {escape(tensor.source.name)} of the "
                "reference.",
                "Write the target again; or the reference is another one.",
            )
    _warn_of_dropped(reference, inherited)
    cast_to = f", cast to {record['dtype']}" if record.get("dtype") else ", bit for bit"
    text = f"{len(inherited)} tensors equal the reference's{cast_to}"
    if repaired:
        text += f"; {len(repaired)} were repaired, as recorded"
    fresh -= repaired
    return Finding("bytes", text + (f"; {len(fresh)} are fresh, as recorded" if fresh else ""))


def _compare_grown(
    target: ModelDirectory,
    record: Mapping[str, Any],
    plan: InheritPlan,
    reference: ModelDirectory,
    scans: Mapping[str, Scan],
) -> Iterator[Finding]:
    """Compare config and layers that came from the reference; all others were a target's."""
    yield _compare_config(target, plan, is_trained=True)
    if not scans:
        yield _NOT_COMPARED
        return
    own, prefix = target.container.prefix, reference.container.prefix
    sources = {own + t.name.removeprefix(prefix): t.source for t in plan.tensors}
    sources |= {t.name: t.source for t in plan.tensors}
    new = [name for name, e in record["tensors"].items() if e.get("from") == "reference"]
    for name in new:
        source, stored = sources.get(name), target.tensors[name]
        if source is None or source.shape != stored.shape:
            raise SourceError(f"{reference.name} has no tensor like {escape(name)}.")
        reference.download([source])
        if _source_digest(TargetTensor(name, source, stored.dtype)) != scans[name].xxh3:
            raise SourceError(
                f"{escape(name)} differs from {escape(source.name)} of the reference."
            )
    rest = len(target.tensors) - len(new)
    text = f"{len(new)} tensors that came back equal the reference's; {rest} are a target's own"
    yield Finding("bytes", text)


def _source_digest(tensor: TargetTensor) -> str:
    digest, source = xxhash.xxh3_128(), tensor.source
    for data in read_chunks(source):
        digest.update(cast(data, source.dtype, tensor.dtype, source.name))
    return digest.hexdigest()


def _warn_of_dropped(reference: ModelDirectory, inherited: Sequence[TargetTensor]) -> None:
    if reference.remote is not None:
        return
    names = {tensor.source.name for tensor in inherited}
    dropped = scan(tensor for name, tensor in reference.tensors.items() if name not in names)
    if broken := [name for name in not_finite(dropped) if not name.endswith(STRAY)]:
        warnings.warn(
            f"{escape(broken[0])} of {reference.name} holds NaN or infinite values; it was not "
            "inherited",
            stacklevel=3,
        )
