"""Fixtures that several rooms use: tiny real models on disk."""

import gc
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fuzzing import MORE
from hypothesis import settings

# The same examples every time, three times as many in `make test-all`; others in `make fuzz`. How
# long one takes says how busy the machine is.
settings.register_profile("any-machine", deadline=None, derandomize=MORE <= 3)
settings.load_profile("any-machine")

# Of tiny models, more threads than one only wait for each other; tests run side by side instead.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Where this is set, every process compiles all of our files again, 0.6 s of processor time, and
# each of xdist's rewrites the assertions of all tests, 8 s.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# What a class answered is remembered by all processes of one run of the tests, and by no other.
if "INHERITUNE_CACHE" not in os.environ:
    _cache = tempfile.TemporaryDirectory(prefix="inheritune-cache-")
    os.environ["INHERITUNE_CACHE"] = _cache.name


def _only_known(descriptor: int) -> None:
    """Stand for `os.fsync`, of which no test sees more than that it was called.

    A small run waits 300 times for the disk; what a real one answers when it is full or broken,
    tests say themselves.
    """
    os.fstat(descriptor)


os.fsync = _only_known

_MUCH_S = 2.0
COSTLY: list[tuple[float, str]] = []  # seconds of processor time, and the test


def _processor_s() -> float:
    """Seconds of processor time of this process and of those that it has waited for."""
    return sum(os.times()[:4])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Note what a test costs, without its fixtures, which others may share."""
    before = _processor_s()
    try:
        return (yield)
    finally:
        item.user_properties.append(("processor_s", _processor_s() - before))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Collect costly tests, from every process of xdist."""
    spent = dict(report.user_properties).get("processor_s", 0)
    if report.when == "call" and isinstance(spent, float) and spent > _MUCH_S:
        COSTLY.append((spent, report.nodeid))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the tests that cost much; see CONTRIBUTING.md."""
    if COSTLY:
        terminalreporter.section(f"above {_MUCH_S:g} s of processor time")
        for spent, nodeid in sorted(COSTLY, reverse=True):
            terminalreporter.write_line(f"{spent:6.1f} s {nodeid}")


@pytest.fixture(autouse=True, scope="module")
def _little_to_collect() -> None:
    """Set aside what the tests before have imported.

    Every training ends with a collection, which walks all objects of torch and transformers: 0.2 s,
    and that of a tiny model takes no longer.
    """
    gc.collect()
    gc.freeze()


# In the place of a drawing: an empty picture in either format.
_NO_SVG = '<svg xmlns="http://www.w3.org/2000/svg"/>'
_NO_PNG = b"\x89PNG\r\n\x1a\n"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Draw charts only in tests marked `drawn`, or with DRAW_ALL: half of a tiny run's time."""
    if os.environ.get("DRAW_ALL") or item.get_closest_marker("drawn"):
        return (yield)
    import vl_convert

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(vl_convert, "vegalite_to_svg", lambda **drawing: _NO_SVG)
        patched.setattr(vl_convert, "vegalite_to_png", lambda **drawing: _NO_PNG)
        return (yield)


@pytest.fixture(scope="module")
def quick_gains() -> Iterator[None]:
    """Time 4 new tokens twice: 32 of them five times are most of a tiny run's time."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("inheritune.evaluation.gains._NEW_TOKENS", 4)
        patched.setattr("inheritune.evaluation.gains._REPEATS", 2)
        yield


@pytest.fixture
def set_umask(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Give this process an umask, as if it had been started with it."""
    from inheritune.system import files

    def give(umask: int) -> None:
        os.umask(umask)
        monkeypatch.setattr(files, "UMASK", umask)

    before = files.UMASK
    yield give
    os.umask(before)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Model directory of a family of `tiny_models.FAMILIES`, made once; never write into it."""
    import tiny_models

    def make(family: str) -> Path:
        return tiny_models.save(family, tmp_path_factory.mktemp(family) / family)

    return tiny_models.cache(make)


@pytest.fixture(scope="session")
def tiny_reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 4 layers with its tokenizer, made once; never write into it."""
    import tiny_models

    return tiny_models.tiny_reference(tmp_path_factory.mktemp("reference") / "tiny-reference")


@pytest.fixture
def reference(tiny_reference: Path, tmp_path: Path) -> Path:
    """A copy of `tiny_reference` to break."""
    import shutil

    return Path(shutil.copytree(tiny_reference, tmp_path / "reference"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The material beside the checkout; the test is skipped where it is not there."""
    found = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not found.is_dir():
        pytest.skip("there is no ../shared/data beside this checkout")
    return found


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JSONL corpus of 120 short documents with a pattern to learn, the same everywhere."""
    import json
    import random

    words = "the small model learns what the large one knew before it grew".split()  # noqa: SIM905
    draw = random.Random(0)
    path = tmp_path_factory.mktemp("text") / "tiny.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number in range(120):
            begin = draw.randrange(len(words))
            text = " ".join(words[(begin + i) % len(words)] for i in range(draw.randrange(20, 60)))
            file.write(json.dumps({"text": f"{number}. {text}."}) + "\n")
    return path


@pytest.fixture(scope="session")
def tiny_tokens(tiny_text: Path, tiny_reference: Path, tmp_path_factory: pytest.TempPathFactory):
    """The tiny corpus, prepared with the tokenizer of `tiny_reference`."""
    from inheritune.data.prepare_text import prepare_text
    from inheritune.data.tokenizer import open_tokenizer
    from inheritune.recipe.data import Data

    data = Data(source=str(tiny_text), val_fraction=0.2)
    tokenizer = open_tokenizer(tiny_reference)
    return prepare_text(data, tokenizer, 320, 16, tmp_path_factory.mktemp("tokens") / "tokens")
