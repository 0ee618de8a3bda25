"""Define the recipe section on text: its sources, its columns and its split."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from inheritune.recipe.values import Amount, CountOrZero, Rate, RecipeSection

TextFormatName = Literal["text", "jsonl", "json", "csv", "tsv", "parquet", "arrow"]


class TextSource(RecipeSection):
    """One of several text sources, with its share of the training tokens."""

    source: str | list[str]
    """As data.source for a single source."""
    weight: Rate = 1.0
    """Share of the training tokens, relative to the other sources."""
    config: str | None = None
    """Configuration of a Hub dataset."""
    split: str | None = None
    """Split of a Hub dataset; null: train."""
    revision: str | None = None
    """Branch, tag or commit of a Hub dataset."""
    text_column: str | None = None
    """Text column; null: data.text_column."""
    messages: str | None = None
    """Column of messages; null: data.messages, but where this source has a text_column."""
    format: TextFormatName | None = None
    """Format of the files; null: data.format."""
    separator: str | None = None
    """Between texts; null: data.separator."""

    @model_serializer(mode="wrap")
    def _without_new_keys(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out unused keys that the records of earlier versions lack."""
        values: dict[str, Any] = handler(self)
        new = ("messages", "format", "separator")
        return {key: value for key, value in values.items() if key not in new or value is not None}


class Data(RecipeSection):
    """Text for training and validation."""

    source: str | list[str] | list[TextSource]
    """A Hub dataset; local files, globs or folders of plain text, .parquet, .arrow, or .jsonl,
    .json, .csv or .tsv (these also as .gz, .zst, .bz2, .lz4 or .xz); stdlib (Python's standard
    library) or stdlib+tests; or a list of mappings {source, weight}."""
    config: str | None = None
    """Configuration of a Hub dataset, such as sample-10BT."""
    split: str | None = None
    """Split of a Hub dataset; null: train."""
    revision: str | None = None
    """Branch, tag or commit of a Hub dataset; null: the newest commit, which is recorded."""
    text_column: str = "text"
    """Column that holds the text; a.b is field b within column a."""
    messages: str | None = None
    """Column of messages (role, content), of which the reference's chat template makes the text, in
    place of text_column; its special tokens are encoded as such."""
    format: TextFormatName | None = None
    """Format of all local files, whatever their names; null: by name and content."""
    separator: str | None = None
    """What stands between the texts of a plain text file; null: <|endoftext|> if it ends lines of a
    .txt; '': nothing."""
    sample: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the documents to use, chosen by hash: a smaller share is a subset of a larger one;
    null: all."""
    val_source: str | list[str] | list[TextSource] | None = None
    """Text to validate on; null: hold out some documents of source."""
    val_sample: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of val_source's documents to use, chosen by hash; null: all."""
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.002
    """Share of the documents to hold out for validation, chosen by hash."""
    split_by: Literal["text", "name"] = "text"
    """What is hashed: a document's text or its name (path or file:line)."""
    tokens: Amount | None = None
    """Stop preparing after this many training tokens; null: use all text."""
    special_tokens_in_text: bool = False
    """true: encode a literal <|endoftext|> in the text as the special token."""
    allow_repeat: bool = False
    """true: allow more than one epoch."""
    max_bad_rows: CountOrZero = 0
    """Unreadable rows or files to skip before failing."""

    @model_validator(mode="after")
    def _dataset_settings_have_one_place(self) -> Self:
        several = any(isinstance(part, TextSource) for part in self.source)
        keys = [key for key in ("config", "split", "revision") if getattr(self, key) is not None]
        if several and keys:
            raise ValueError(f"with several sources, {keys[0]} belongs to each entry of source")
        return self
