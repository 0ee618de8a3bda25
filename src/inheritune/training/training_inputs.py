"""Compare what a training is made from with what its checkpoint was made from."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from inheritune.errors import RecipeError
from inheritune.system.inputs import differences, refuse_differences


@dataclass(frozen=True)
class TrainingInputs:
    """All that a training is made from; a checkpoint of other inputs is not continued."""

    decisive: Mapping[str, Any]  # keys that decide the result; a difference is refused
    # Keys whose difference is only noted; versions of libraries are always among them.
    noted: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)  # `Settings.compared`
    allowed: Collection[str] = ()  # keys of `decisive` that may differ (`--allow-change`)

    def record(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of the inputs, by its keys in trainer.json."""
        versions = {name: version(name) for name in ("torch", "transformers", "inheritune")}
        return {
            "inputs": dict(self.decisive),
            "warn": versions | dict(self.noted),
            "settings": dict(self.settings),
        }

    def compare(self, checkpoint: Path, trainer: Mapping[str, Any]) -> list[str]:
        """Refuse a checkpoint of other inputs; return a sentence for each harmless difference.

        Raises:
            RecipeError: A key that decides the result differs, or the precision.
        """
        allowed = refuse_differences(checkpoint, trainer["inputs"], self.decisive, self.allowed)
        notes = [f"allowed: {key} was {old!r}, now it is {new!r}" for key, old, new in allowed]
        # Checkpoints of older versions lack the other two.
        if noted := trainer.get("warn"):
            changed = differences(noted, self.record()["warn"])
            notes += [f"{key} was {old}, now it is {new}" for key, old, new in changed]
        for key, old in (trainer.get("settings") or {}).items():
            if (new := self.settings.get(key, old)) == old:
                continue
            if key == "precision" and "train.precision" not in self.allowed:
                raise RecipeError(
                    f"{checkpoint} was trained in {old}; train.precision comes to {new} here.",
                    "Go on where it was begun, or with --allow-change train.precision, which is "
                    "recorded.",
                )
            notes.append(f"settings.{key} was {old}, now it is {new}")
        return notes
