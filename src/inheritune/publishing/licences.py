"""Find the licence that a target carries over from its reference, and refuse what it forbids."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from inheritune.errors import RecipeError, escape
from inheritune.model_files.card import carried_fields
from inheritune.model_files.download.hub import ask_again

_UNKNOWN = {"", "unknown", "none", "null", "unlicensed", "tbd"}
# By the names that the Hub uses. Some forbid commercial use without saying so in their name.
_NON_COMMERCIAL = re.compile(r"(^|[-_ ])nc([-_ .]|$)|non-?commercial|research|^cc-by-nc|amlr")
_STATE_IT = "State the reference's: --license apache-2.0, for example."


@dataclass(frozen=True)
class BaseLicence:
    """The licence that a target carries over."""

    licence: str | None  # from the card of the target, or else of its base model; None: unknown
    base: str | None = None  # Hub id of the base model; None if the card names none
    gated: bool = False  # whether people must accept terms to get the base model
    # Licence fields of the base model's card that the target's card lacks.
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def restricted(self) -> bool:
        """Whether it must be kept as it is, and a public copy needs an explicit decision."""
        return self.gated or (self.licence is not None and is_non_commercial(self.licence))


def is_non_commercial(licence: str) -> bool:
    """Whether a licence, by its name on the Hub, forbids commercial use."""
    return _NON_COMMERCIAL.search(licence.lower()) is not None


def carried_licence(fields: Mapping[str, Any]) -> BaseLicence:
    """Read the licence in a card's front matter, and ask the Hub about the base model it names."""
    own_name, base = _name_of(fields), fields.get("base_model")
    if not isinstance(base, str) or not base:
        return BaseLicence(own_name)
    from huggingface_hub import HfApi, constants, errors

    try:
        api = HfApi(endpoint=constants.ENDPOINT)
        info = ask_again(lambda: api.model_info(base, timeout=15))
    except errors.GatedRepoError:
        return BaseLicence(own_name, base, gated=True)
    except Exception:
        # The Hub cannot be reached: the card decides, and the push will fail with the reason.
        return BaseLicence(own_name, base)
    base_fields = info.card_data.to_dict() if info.card_data else {}
    missing = {} if own_name else carried_fields(base_fields)
    missing.pop("language", None)
    return BaseLicence(own_name or _name_of(base_fields), base, bool(info.gated), missing)


def _name_of(fields: Mapping[str, Any]) -> str | None:
    name = fields.get("license")
    if not isinstance(name, str) or name.strip().lower() in _UNKNOWN:
        return None
    if name.strip().lower() == "other":  # says nothing but where it is written
        name = fields.get("license_name") or fields.get("license_link")
        return name if isinstance(name, str) and name else None
    return name


def refuse_licence(base: BaseLicence, stated: str | None, repeated: bool, public: bool) -> None:
    """Refuse to publish a target whose licence is unknown or does not allow it.

    Args:
        stated: The licence that the card will have.
        repeated: Whether it was given on the command line.

    Raises:
        RecipeError: The licence is unknown; or the base model is gated or not for commercial use,
            and another licence is stated, or the copy would be public without stating the same.
    """
    if stated is None or stated.strip().lower() in {*_UNKNOWN, "other"}:
        raise RecipeError("the licence of the reference is unknown.", _STATE_IT)
    if not base.restricted:
        return
    why = "gated" if base.gated else "not for commercial use"
    name = escape(base.base or "the reference")
    licence = escape(base.licence or "its own")
    if base.licence is not None and stated != base.licence:
        raise RecipeError(
            f"{name} is {why}: its licence {licence} cannot become {escape(stated)}.",
            f"Leave --license out, or state {licence}.",
        )
    if public and not repeated:
        raise RecipeError(
            f"{name} is {why} (licence {licence}); a public copy of its layers needs your word.",
            f"Where its terms allow that, add --license {licence}; or leave --public out.",
        )
