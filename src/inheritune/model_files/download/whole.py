"""Download a Hub model with all of its weights into the Hub's cache, and check its digests.

The Hub's library cannot be asked to stop, so it downloads in a child process, which can be killed
at any time: ``python -m inheritune.model_files.download.whole REQUEST``.
"""

import glob
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from inheritune import errors
from inheritune.errors import InherituneError, Interrupted, MachineError, SourceError, escape
from inheritune.model_files.download.hub import (
    NEEDED,
    UNWANTED,
    ask_again,
    hub_errors,
    mirror_root,
    wanted_files,
)
from inheritune.system.files import sha256
from inheritune.system.signals import follow_parent

_POLL_S = 0.2
_SHA256 = re.compile(r"[0-9a-f]{64}")


def download_whole(
    model: str, revision: str | None, stop: Callable[[], bool] = lambda: False
) -> Path:
    """Download a model into the Hub's cache, or find it there, and check its weights.

    A stopped or killed download keeps what has arrived, and the next one resumes it.

    Returns:
        The snapshot's directory, which is named after the commit.

    Raises:
        SourceError: The Hub has no such model or revision, or does not show it to this account; or
            a file is not what the Hub lists.
        MachineError: The Hub cannot be reached, and the cache does not hold the model.
        Interrupted: ``stop`` returned True.
    """
    request = json.dumps({"model": model, "revision": revision})
    child = subprocess.Popen(
        [sys.executable, "-m", "inheritune.model_files.download.whole", request],
        stdout=subprocess.PIPE,
        env=os.environ | _library_settings(),
        start_new_session=True,  # Ctrl-C is this process's to answer
    )
    try:
        answer = _answer(child, model, stop)
    finally:
        child.kill()
        child.wait()
    if "error" in answer:
        name, message, hint = answer["error"]
        raise getattr(errors, name)(message, hint)
    snapshot = Path(answer["path"])
    check_digests(snapshot, model, stop)
    return snapshot


def _library_settings() -> dict[str, str]:
    """Return this process's settings of the Hub's library as environment variables."""
    from huggingface_hub import constants

    return {
        "HF_ENDPOINT": constants.ENDPOINT,
        "HF_HOME": constants.HF_HOME,
        "HF_HUB_CACHE": str(constants.HF_HUB_CACHE),
        "HF_HUB_OFFLINE": str(int(constants.HF_HUB_OFFLINE)),
        "HF_HUB_DOWNLOAD_TIMEOUT": str(constants.HF_HUB_DOWNLOAD_TIMEOUT),
    }


def _answer(child: subprocess.Popen[bytes], model: str, stop: Callable[[], bool]) -> dict[str, Any]:
    while True:
        with suppress(subprocess.TimeoutExpired):
            output = child.communicate(timeout=_POLL_S)[0]
            break
        _refuse_stop(model, stop)
    try:
        answer: dict[str, Any] = json.loads(output.splitlines()[-1])
    except (ValueError, LookupError) as error:
        raise MachineError(
            f"the process that downloads {model} ended with exit code {child.returncode}.",
            "Run the same command again: what has arrived is kept.",
        ) from error
    return answer


def _refuse_stop(model: str, stop: Callable[[], bool]) -> None:
    if stop():
        raise Interrupted(
            f"stopped while {model} was downloaded; what has arrived is kept.",
            "Run the same command to continue.",
        )


def check_digests(snapshot: Path, model: str, stop: Callable[[], bool] = lambda: False) -> None:
    """Compare each large file of the Hub's cache once with the SHA-256 that the Hub lists.

    The cache names a large file by that digest. A file with another digest is deleted; one with the
    right digest is marked as checked, beside the mirror of partial downloads.
    """
    damaged = []
    for link in sorted(snapshot.glob("*")):
        blob = Path(os.path.realpath(link))
        if not _SHA256.fullmatch(blob.name) or not blob.is_file():
            continue  # a small file, or a cache that holds copies
        mark, mtime = mirror_root(model) / "checked" / blob.name, str(blob.stat().st_mtime_ns)
        with suppress(OSError):
            if mark.read_text(encoding="utf-8") == mtime:
                continue
        if sha256(blob, partial(_refuse_stop, model, stop)) != blob.name:
            link.unlink()
            blob.unlink(missing_ok=True)
            damaged.append(escape(link.name))
            continue
        with suppress(OSError):  # where no mark can be written, the file is compared again
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.write_text(mtime, encoding="utf-8")
    if damaged:
        raise SourceError(
            f"{', '.join(damaged)} of {model} did not have the digest that the Hub lists, and was "
            "deleted.",
            "Run the same command again: it is then downloaded anew.",
        )


def _download_here(model: str, revision: str | None) -> dict[str, Any]:
    """Download in this process; return the path or the error for the parent."""
    from huggingface_hub import errors, snapshot_download

    get: Callable[..., Any] = partial(snapshot_download, model, revision=revision)
    names, unwanted = NEEDED, UNWANTED
    try:
        with hub_errors(model, revision):
            with suppress(errors.DryRunError):  # offline: what is there must do
                files = ask_again(partial(get, dry_run=True))
                sizes = {file.filename: file.file_size or 0 for file in files}
                names = [glob.escape(name) for name in sorted(wanted_files(sizes, model))]
                unwanted = []
            path = ask_again(partial(get, allow_patterns=names, ignore_patterns=unwanted))
    except InherituneError as error:
        return {"error": [type(error).__name__, error.message, error.hint]}
    return {"path": str(path)}


if __name__ == "__main__":
    follow_parent(signal.SIGKILL)
    request = json.loads(sys.argv[1])
    sys.stdout.write(json.dumps(_download_here(request["model"], request["revision"])) + "\n")
