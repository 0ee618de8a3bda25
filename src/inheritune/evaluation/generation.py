"""Let several models continue the same prompt under the same settings."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from html import escape as html_escape
from typing import Any

from inheritune.errors import Interrupted, RecipeError, escape
from inheritune.evaluation.samples import GeneratedText, GenerationSettings, TextModel
from inheritune.model_files.directory import ModelDirectory
from inheritune.system.progress import Listener, Progress, silent
from inheritune.system.rows import Rows
from inheritune.training.hardware import choose_device


@dataclass(frozen=True)
class Generation(Rows):
    """What models wrote after the same prompt.

    Attributes:
        prompt: The beginning, or the question of a chat.
        settings: The settings, the same for all models.
        device: ``"cuda"`` or ``"cpu"``.
        dtype: ``"bf16"`` or ``"fp32"``.
        texts: In the order of the models.
    """

    prompt: str
    settings: GenerationSettings
    device: str
    dtype: str
    texts: tuple[GeneratedText, ...]

    def rows(self) -> list[dict[str, Any]]:
        """A row for each model."""
        return [asdict(text) for text in self.texts]

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        own = {"prompt": self.prompt, "device": self.device, "dtype": self.dtype}
        return own | {"settings": asdict(self.settings), "models": self.rows()}

    def _repr_html_(self) -> str:
        prompt = html_escape(self.prompt)
        return "".join(
            f"<p><b>{html_escape(text.model)}</b></p>"
            f'<pre><span style="opacity: 0.6">{prompt}</span>{html_escape(text.text)}</pre>'
            for text in self.texts
        )


def generate_texts(
    models: Sequence[tuple[str, ModelDirectory]],
    prompt: str,
    settings: GenerationSettings,
    on_progress: Listener = silent,
    on_text: Callable[[str, str], None] | None = None,
) -> Generation:
    """Let models continue the same prompt, one after the other, in bf16 on a GPU and else in fp32.

    Args:
        models: Name and directory of each.
        on_text: Called before each model with an empty text, then with each piece of its text.

    Raises:
        InherituneError: A setting or the prompt is wrong, or a model cannot write.
        Interrupted: Ctrl-C was pressed.
    """
    settings.check()
    check_prompt(prompt)
    device = choose_device()
    dtype = "bf16" if device == "cuda" else "fp32"
    texts = []
    try:
        for name, directory in models:
            show = partial(on_text or _show_nothing, name)
            model = TextModel(directory.path, name, dtype, device)
            model.prompt_ids(prompt, settings.chat)  # refused before anything is shown
            on_progress(Progress("generate", message=f"{name} writes"))
            show("")
            texts.append(model.write(prompt, settings, show))
    except KeyboardInterrupt:
        raise Interrupted("stopped by SIGINT; no text is kept.", "Run it again.") from None
    return Generation(prompt, settings, device, dtype, tuple(texts))


def _show_nothing(model: str, text: str) -> None:
    pass


def check_prompt(prompt: str) -> None:
    """Refuse a prompt that cannot be continued.

    Raises:
        RecipeError: It is empty, or holds half a surrogate pair.
    """
    if not prompt.strip():
        raise RecipeError("the prompt is empty.", "Write at least one word.")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        shown = escape(prompt[error.start], 20)
        raise RecipeError(f"the prompt holds {shown}.", "Write it in UTF-8.") from error
