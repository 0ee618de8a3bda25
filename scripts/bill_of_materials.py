"""Print the packages that this environment holds as a CycloneDX 1.6 bill of materials.

Run as ``python scripts/bill_of_materials.py``, in the environment that is to be listed. The same
environment gives the same bytes. Hashes are those of requirements-hashed.txt: of the files that an
index offers, not of what lies on this disk.
"""

import json
import re
import sys
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

_HASHED = Path(__file__).parents[1] / "requirements-hashed.txt"


def bill_of_materials() -> dict[str, Any]:
    """Return the bill: inheritune itself, and every other package as a component."""
    hashes = _known_hashes()
    components = {_normal(d.metadata["Name"]): _component(d, hashes) for d in distributions()}
    own = components.pop("inheritune", None)
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": (own or {"name": "inheritune"}) | {"type": "application"}},
        "components": [components[name] for name in sorted(components)],
    }


def _component(distribution: Distribution, hashes: dict[str, list[str]]) -> dict[str, Any]:
    metadata, name = distribution.metadata, _normal(distribution.metadata["Name"])
    version = distribution.version
    address = f"pkg:pypi/{name}@{version}"
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": address,
        "name": name,
        "version": version,
        "purl": address,
    }
    if expression := metadata.get("License-Expression"):
        component["licenses"] = [{"expression": expression}]
    elif named := _licence_names(metadata.get_all("Classifier") or []):
        component["licenses"] = [{"license": {"name": text}} for text in named]
    if digests := hashes.get(f"{name}=={version.partition('+')[0]}"):
        # One package has many files: which of them was taken is not recorded anywhere.
        component["properties"] = [
            {"name": "inheritune:sha256-of-file", "value": digest} for digest in digests
        ]
    return component


def _licence_names(classifiers: list[str]) -> list[str]:
    return [c.rpartition(" :: ")[2] for c in classifiers if c.startswith("License :: ")]


def _known_hashes() -> dict[str, list[str]]:
    """SHA-256 of the files of each ``name==version``."""
    known: dict[str, list[str]] = {}
    pin = ""
    for line in _HASHED.read_text(encoding="utf-8").splitlines():
        if named := re.match(r"([\w.-]+)==([^\s;\\]+)", line):
            pin = f"{_normal(named[1])}=={named[2]}"
            known[pin] = []
        elif digest := re.search(r"--hash=sha256:([0-9a-f]{64})", line):
            known[pin].append(digest[1])
    return known


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    json.dump(bill_of_materials(), sys.stdout, indent=2, sort_keys=True)
    print()
