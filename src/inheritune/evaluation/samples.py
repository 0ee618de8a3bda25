"""Generate text with a model, greedily or by drawing tokens, as plain transformers does."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from inheritune.errors import DataError, MachineError, RecipeError, SourceError, first_line
from inheritune.errors import UnsupportedModelError as Unsupported
from inheritune.training.models import load_model
from inheritune.training.tokenization import load_as_trained

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LOWEST_TEMPERATURE, _HIGHEST_TEMPERATURE = 0.01, 100.0
_MOST_SEED = 2**63 - 1


@dataclass(frozen=True)
class GenerationSettings:
    """How to generate; see `inheritune.api.generate` for each field."""

    max_tokens: int = 128
    temperature: float = 0.0
    seed: int = 0
    chat: bool = False

    def check(self) -> None:
        """Refuse settings with which nothing can be generated.

        Raises:
            RecipeError: A value is out of its range.
        """
        if self.max_tokens < 1:
            raise RecipeError(f"--max-tokens is {self.max_tokens}.", "Name at least 1.")
        lowest, highest = _LOWEST_TEMPERATURE, _HIGHEST_TEMPERATURE
        if self.temperature != 0 and not lowest <= self.temperature <= highest:
            raise RecipeError(
                f"--temperature is {self.temperature:g}.",
                f"Name 0 for the likeliest token at each place, or {lowest:g} to {highest:g}.",
            )
        if not 0 <= self.seed <= _MOST_SEED:
            raise RecipeError(f"--seed is {self.seed}.", "Name a number from 0 to 2^63 - 1.")


@dataclass(frozen=True)
class GeneratedText:
    """What one model wrote after the prompt.

    Attributes:
        model: The model's name.
        text: The text without the prompt and without special tokens.
        prompt_tokens: Tokens of the prompt, those that the tokenizer adds included.
        tokens: Tokens that were generated.
        end: Why the text ends: ``"model"``: it ended it; ``"max_tokens"``; or ``"positions"``: the
            model has no more of them.
        seconds: Wall-clock time of the generation, without loading the model.
    """

    model: str
    text: str
    prompt_tokens: int
    tokens: int
    end: str
    seconds: float


class TextModel:
    """A model with its tokenizer, ready to write.

    Args:
        directory: A model directory.
        name: What to call the model in messages; the directory by default.

    Raises:
        UnsupportedModelError: transformers has no causal language model of its config.
        SourceError: Weights are missing, such as those of the head.
        DataError: The tokenizer is missing or broken.
    """

    def __init__(
        self, directory: Path, name: str = "", dtype: str = "fp32", device: str = "cpu"
    ) -> None:
        self.name = name or str(directory)
        self._tokenizer = _tokenizer(directory, self.name)
        torch_dtype = torch.bfloat16 if dtype == "bf16" else torch.float32
        try:
            model: Any = load_model(directory, dtype=torch_dtype)
        except ValueError as error:
            raise Unsupported(
                f"{self.name} cannot write text: {first_line(error)}.",
                "Choose a causal language model.",
            ) from error
        self._model = model.to(device).eval()

    def prompt_ids(self, prompt: str, chat: bool = False) -> Tensor:
        """Encode a prompt, (1, T) int64, in the model's chat template if asked.

        Raises:
            RecipeError: The prompt is empty or leaves no position free, or there is no template.
            SourceError: The chat template is broken.
        """
        if chat:
            ids = self._chat_ids(prompt)
        else:
            ids = self._tokenizer(prompt, return_tensors="pt")["input_ids"]
        length, positions = ids.shape[1], self._positions
        if not length:
            raise RecipeError(f"the prompt has no token for {self.name}.", "Write a longer one.")
        if positions is not None and length >= positions:
            raise RecipeError(
                f"the prompt has {length:,} tokens, and {self.name} has {positions:,} positions.",
                "Shorten the prompt.",
            )
        return ids

    def write(
        self,
        prompt: str,
        settings: GenerationSettings,
        on_text: Callable[[str], None] = lambda text: None,
    ) -> GeneratedText:
        """Continue a prompt with `transformers.GenerationMixin.generate`.

        Whatever the settings do not say, such as top_p, is as the model's generation_config.json
        has it.

        Args:
            on_text: Called with each piece of the text as soon as it is there.

        Raises:
            SourceError: The model's probabilities are not finite.
            UnsupportedModelError: Its generation_config.json asks for what cannot be done.
            MachineError: The memory does not suffice.
        """
        ids = self.prompt_ids(prompt, settings.chat).to(self._model.device)
        length, limit = ids.shape[1], settings.max_tokens
        if self._positions is not None:
            limit = min(limit, self._positions - length)
        pieces = _Pieces(self._tokenizer, on_text)
        sampling: dict[str, Any] = {"do_sample": False}
        if settings.temperature:
            sampling = {"do_sample": True, "temperature": settings.temperature}
        began = time.monotonic()
        with _drawn_from(settings.seed), torch.no_grad(), self._failures_named(pieces):
            out = self._model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=limit,
                num_beams=1,
                pad_token_id=self._tokenizer.eos_token_id,
                streamer=pieces,
                return_dict_in_generate=False,
                tokenizer=self._tokenizer,  # to find stop strings
                **sampling,
            )
        added = out[0, length:].tolist()
        end = "model"
        if len(added) == limit and added[-1] not in self._last_ids:
            end = "max_tokens" if limit == settings.max_tokens else "positions"
        text = str(self._tokenizer.decode(added, skip_special_tokens=True))
        seconds = round(time.monotonic() - began, 3)
        return GeneratedText(self.name, text, length, len(added), end, seconds)

    @property
    def _positions(self) -> int | None:
        config = self._model.config.get_text_config(decoder=True)
        positions = getattr(config, "max_position_embeddings", None)
        return positions if isinstance(positions, int) and positions > 0 else None

    @property
    def _last_ids(self) -> set[int]:
        """The ids that end a text."""
        eos = self._model.generation_config.eos_token_id
        return set(eos if isinstance(eos, list) else [eos])

    def _chat_ids(self, prompt: str) -> Tensor:
        if not self._tokenizer.chat_template:
            raise RecipeError(
                f"the tokenizer of {self.name} has no chat template.", "Leave out --chat."
            )
        messages = [{"role": "user", "content": prompt}]
        try:
            encoded: Any = self._tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
        except Exception as error:  # whatever the template's own text makes Jinja raise
            raise SourceError(
                f"the chat template of {self.name} is broken: {first_line(error)}.",
                "Leave out --chat.",
            ) from error
        return encoded["input_ids"]  # type: ignore[no-any-return]

    @contextmanager
    def _failures_named(self, pieces: "_Pieces") -> Iterator[None]:
        try:
            yield
        except (ValueError, TypeError, ImportError) as error:
            if pieces.is_calling:  # the caller's own error
                raise
            raise refused_settings(self.name, error) from error
        except (MemoryError, RuntimeError) as error:
            if "probability tensor" in str(error):
                raise SourceError(
                    f"{self.name} gives probabilities that are not finite.", "Choose another model."
                ) from error
            is_memory_error = isinstance(error, MemoryError | torch.OutOfMemoryError)
            if not is_memory_error and "can't allocate memory" not in str(error):
                raise
            raise MachineError(
                f"out of memory while {self.name} writes.", "Lower --max-tokens."
            ) from error


def refused_settings(name: str, error: Exception) -> Unsupported:
    """Return the error for a generation_config.json with which `generate` fails."""
    return Unsupported(
        f"{name} cannot write text with its generation_config.json: {first_line(error)}.",
        "Remove that setting from the file in a copy of the model.",
    )


def continue_prompts(model_dir: Path, prompts: Sequence[str], tokens: int) -> list[str]:
    """Continue prompts greedily, in fp32 on the processor.

    Args:
        tokens: Most tokens to generate for each prompt; fewer if the model ends the document.

    Returns:
        The text after each prompt, without the prompt.
    """
    model, settings = TextModel(model_dir), GenerationSettings(max_tokens=tokens)
    return [model.write(prompt, settings).text for prompt in prompts]


class _Pieces(BaseStreamer):
    """Pass on the text of each new token; the bytes of a character wait until it is complete."""

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", on_text: Callable[[str], None]
    ) -> None:
        self._tokenizer, self._on_text = tokenizer, on_text
        self._ids: list[int] | None = None  # None: the prompt has not come
        self._shown = ""
        self.is_calling = False  # whether `on_text` runs

    def put(self, value: Tensor) -> None:
        """Take the prompt's ids first, then each new one."""
        if self._ids is None:
            self._ids = []
            return
        self._ids += value.flatten().tolist()
        text = self._text()
        if not text.endswith("\ufffd"):
            self._show(text)

    def end(self) -> None:
        """Pass on what is left."""
        self._show(self._text())

    def _text(self) -> str:
        # All of it each time: a tokenizer may drop a space at the beginning of what it decodes.
        return str(self._tokenizer.decode(self._ids or [], skip_special_tokens=True))

    def _show(self, text: str) -> None:
        if len(text) > len(self._shown):
            self.is_calling = True
            self._on_text(text[len(self._shown) :])
            self.is_calling = False
            self._shown = text


@contextmanager
def _drawn_from(seed: int) -> Iterator[None]:
    """Draw from a seed, and give the caller's random numbers back."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _tokenizer(directory: Path, name: str) -> "PreTrainedTokenizerBase":
    try:
        tokenizer: PreTrainedTokenizerBase = load_as_trained(directory)
    except Exception as error:  # tokenizers raises plain exceptions
        raise DataError(
            f"the tokenizer of {name} cannot be opened: {first_line(error)}.",
            "Copy its files from the model that it was cut from.",
        ) from error
    return tokenizer
