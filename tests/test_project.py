"""The files around the code agree with the code and with each other."""

import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from inheritune import __version__

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
REQUIREMENTS = [
    Requirement(text) for texts in [PROJECT["dependencies"], *EXTRAS.values()] for text in texts
]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "AGENTS.md", "CHANGELOG.md")),
    *sorted(p for p in (ROOT / "docs").rglob("*.md") if "_build" not in p.parts),
]
KEPT_OUT = {"litdata", "mosaicml-streaming", "torchvision", "liger-kernel", "inheritune"}


def constraints() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = [line.partition("==") for line in lines if line and not line.startswith("#")]
    assert all(name and version for name, _, version in pins)
    assert len({canonicalize_name(name) for name, *_ in pins}) == len(pins)
    return {canonicalize_name(name): Version(version) for name, _, version in pins}


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_the_tested_set_pins_every_requirement_at_or_above_its_minimum(requirement):
    pinned = constraints()[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(pinned, prereleases=True)


def test_the_tested_set_names_no_build_and_nothing_kept_out():
    assert not [name for name, version in constraints().items() if version.local]
    assert not KEPT_OUT & constraints().keys()


def test_every_tested_version_has_hashes():
    text = (ROOT / "requirements-hashed.txt").read_text("utf-8")
    entries = re.findall(
        r"^([\w.-]+)==(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", text, re.M
    )
    assert len(entries) == len(re.findall(r"^[^#\s]", text, re.M))
    hashed = {canonicalize_name(name): Version(version) for name, version, _ in entries}
    assert {name: hashed.get(name) for name in constraints()} == constraints()


def test_the_tested_set_can_install_the_package_without_fetching_more():
    # The last step of `make hashed`: hatchling asks for editables only when it needs it.
    needed = {"hatchling", "editables", "packaging", "pathspec", "pluggy", "trove-classifiers"}
    assert needed <= constraints().keys()


def test_the_bill_of_materials_lists_what_is_installed():
    command = [sys.executable, str(ROOT / "scripts/bill_of_materials.py")]
    bill = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert bill["metadata"]["component"]["name"] == "inheritune"
    listed = {component["name"]: component for component in bill["components"]}
    assert len(listed) == len(bill["components"])
    for name in ("torch", "transformers", "numpy"):
        assert Version(listed[name]["version"]) == Version(version(name))
    assert listed["numpy"]["properties"] and listed["numpy"]["licenses"]


def test_the_package_itself_pins_nothing():
    # Exact versions belong to constraints.txt: a library that pins cannot be installed beside
    # another.
    assert {s.operator for r in REQUIREMENTS for s in r.specifier} == {">="}


def test_readme_is_at_most_900_words():
    assert len((ROOT / "README.md").read_text("utf-8").split()) <= 900


def test_changelog_and_citation_know_this_version():
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert re.findall(r"^## \[(\d[^]]*)\]", changelog, re.MULTILINE)[0] == __version__
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    assert re.findall(r"^version: (\S+)$", citation, re.MULTILINE) == [__version__]


def test_licence_is_the_full_text_of_the_one_named():
    licence = (ROOT / "LICENSE").read_text("utf-8")
    assert PROJECT["license"] == "Apache-2.0"
    assert "Version 2.0, January 2004" in licence
    assert "END OF TERMS AND CONDITIONS" in licence


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_recipes_that_a_page_names_exist(page):
    named = set(re.findall(r"\brecipes/[\w.-]+\.yaml", page.read_text("utf-8")))
    assert not {name for name in named if not (ROOT / name).is_file()}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_files_that_a_page_links_to_exist(page):
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text("utf-8"))
    local = [link for link in links if "://" not in link and not link.startswith("mailto:")]
    assert not [link for link in local if not (page.parent / link).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_make_targets_that_a_page_names_exist(page):
    named = set(re.findall(r"(?:`|^\$ |^)make ([a-z-]+)", page.read_text("utf-8"), re.MULTILINE))
    assert named <= make_targets()


def make_targets() -> set[str]:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    return set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))


@pytest.mark.skipif(sys.platform == "win32", reason="no make on Windows")
def test_make_lists_every_target_with_what_it_does():
    done = subprocess.run(["make", "-s", "-C", ROOT], capture_output=True, text=True, check=True)
    listed = {line.split()[1] for line in done.stdout.splitlines() if len(line.split()) > 2}
    assert listed == make_targets()
    usual = {"help", "setup", "demo", "test", "check", "bench", "faults", "support", "recipes"}
    usual |= {"test-all", "docs", "hashed", "sbom", "fuzz", "faults-deep", "bench-quick"}
    assert listed == usual


def test_pre_commit_hooks_come_from_no_other_host():
    text = (ROOT / ".pre-commit-config.yaml").read_text("utf-8")
    assert re.findall(r"repo: (\S+)", text) == ["local"]


def test_the_container_copies_files_that_are_there_and_let_in():
    steps = (ROOT / "Dockerfile").read_text("utf-8").replace("\\\n", " ").splitlines()
    copied = [name for step in steps if step.startswith("COPY ") for name in step.split()[1:-1]]
    allowed = (ROOT / ".dockerignore").read_text("utf-8").split()
    assert copied
    for name in copied:
        assert (ROOT / name).exists()
        assert f"!{name}" in allowed
    arguments = {step.split()[1].partition("=")[0] for step in steps if step.startswith("ARG ")}
    assert all(f"${name}" in "\n".join(steps) for name in arguments)


def dockerfile_faults(text: str) -> set[str]:
    """Rules of hadolint, by its numbers, that a Dockerfile breaks."""
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line[:1] not in ("", "#")]
    steps = [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines)]
    values = {word: [rest for name, rest in steps if name == word] for word, _ in steps}
    faults = {"DL3020"} if "ADD" in values else set()
    for base in values["FROM"]:
        tag = base.split()[0].partition(":")[2]
        faults |= {"DL3006"} if not tag else {"DL3007"} if tag == "latest" else set()
    faults |= {"DL3000"} if any(path[:1] != "/" for path in values.get("WORKDIR", [])) else set()
    faults |= {"DL3002"} if values.get("USER", ["root"])[-1] in ("root", "0") else set()
    started = [form for word in ("CMD", "ENTRYPOINT") for form in values.get(word, [])]
    faults |= {"DL3025"} if any(form[:1] != "[" for form in started) else set()
    for command in values.get("RUN", []):
        if "apt-get install" in command:
            faults |= set() if "apt-get update" in command else {"DL3009"}
            faults |= set() if "rm -rf /var/lib/apt/lists/*" in command else {"DL3009"}
            faults |= set() if "--no-install-recommends" in command else {"DL3015"}
            faults |= set() if " -y " in command else {"DL3014"}
        if "pip install" in command and "PIP_NO_CACHE_DIR" not in text:
            faults |= set() if "--no-cache-dir" in command else {"DL3042"}
        faults |= {"DL3004"} if command.startswith("sudo") else set()
        faults |= {"DL3003"} if command.startswith("cd ") else set()
    return faults


def test_the_container_breaks_no_rule_of_a_linter():
    assert dockerfile_faults((ROOT / "Dockerfile").read_text("utf-8")) == set()


@pytest.mark.parametrize(
    ("before", "after", "rule"),
    [
        ("FROM python:3.12-slim", "FROM python", "DL3006"),
        ("FROM python:3.12-slim", "FROM python:latest", "DL3007"),
        ("WORKDIR /src", "WORKDIR src", "DL3000"),
        ("USER inheritune\n", "", "DL3002"),
        ("COPY src src", "ADD src src", "DL3020"),
        ('ENTRYPOINT ["inheritune"]', "ENTRYPOINT inheritune", "DL3025"),
        ("ENV PIP_NO_CACHE_DIR=1\n", "", "DL3042"),
        ("--no-install-recommends", "", "DL3015"),
        ("rm -rf /var/lib/apt/lists/*", "true", "DL3009"),
    ],
)
def test_the_linter_of_the_container_sees(before, after, rule):
    text = (ROOT / "Dockerfile").read_text("utf-8")
    assert before in text
    assert rule in dockerfile_faults(text.replace(before, after))
