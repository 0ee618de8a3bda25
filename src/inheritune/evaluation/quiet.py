"""Keep lm-eval quiet and in one process while a block runs: the one place that patches things."""

import contextlib
import io
import logging
import os
from collections.abc import Iterator
from typing import Any

from inheritune.model_files.transformers_log import errors_only

# lm-eval's own switch for its pool of bootstrap processes.
_NO_POOL = "DISABLE_MULTIPROC"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence bars, log lines and prints of lm-eval, datasets and transformers.

    Everything is process-wide, and put back when the block ends:

    - tqdm's constructor is replaced: lm-eval creates bars that no argument or variable turns off.
    - ``DISABLE_MULTIPROC`` is set: lm-eval ends its pool by SIGTERM, of which a forked worker only
      takes note, since it inherits our handlers; the pool would wait for it for ever.
    - stdout is redirected, and the loggers of lm-eval and transformers print errors only.
    """
    import tqdm
    from datasets.utils.logging import disable_progress_bar

    disable_progress_bar()
    logger = logging.getLogger("lm_eval")
    level, constructor, pool = logger.level, tqdm.tqdm.__init__, os.environ.get(_NO_POOL)

    def disabled(bar: Any, *args: Any, **kwargs: Any) -> None:
        constructor(bar, *args, **(kwargs | {"disable": True}))

    tqdm.tqdm.__init__ = disabled
    logger.setLevel(logging.CRITICAL)
    os.environ[_NO_POOL] = "1"
    try:
        with errors_only(), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tqdm.tqdm.__init__ = constructor
        logger.setLevel(level)
        if pool is None:
            del os.environ[_NO_POOL]
        else:
            os.environ[_NO_POOL] = pool
