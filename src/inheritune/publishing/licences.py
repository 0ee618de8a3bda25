"""Which licence a target has, by its reference's, and what that allows."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from inheritune.errors import RecipeError, escape
from inheritune.model_files.card import carried_fields

__all__ = ["BaseLicence", "carried_licence", "refuse_licence"]

_UNKNOWN = {"", "unknown", "none", "null", "unlicensed", "tbd"}
# By the names that the Hub uses. Some forbid commercial use without saying so in their name.
_NON_COMMERCIAL = re.compile(r"(^|[-_ ])nc([-_ .]|$)|non-?commercial|research|^cc-by-nc|amlr")
_STATE_IT = "State the reference's: --license apache-2.0, for example."


@dataclass(frozen=True)
class BaseLicence:
    """What is known of the licence that a target carries over.

    Attributes:
        licence: As the card of the target, or else of its base model, has it; None: unknown.
        base: Hub id of the base model; None where it has none.
        gated: Whether the base model is given only to those who accept its terms.
        fields: What the card of the target lacks: the fields of its base model's on the licence.
    """

    licence: str | None
    base: str | None = None
    gated: bool = False
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def restricted(self) -> bool:
        """Whether it must be carried over as it is, and not be made public by the way."""
        return self.gated or (self.licence is not None and is_non_commercial(self.licence))


def is_non_commercial(licence: str) -> bool:
    """Whether a licence, by its name on the Hub, keeps others from earning money."""
    return _NON_COMMERCIAL.search(licence.lower()) is not None


def carried_licence(fields: Mapping[str, Any]) -> BaseLicence:
    """The licence on a target's card; where it names a base model, the Hub is asked about that.

    Args:
        fields: Front matter of the card.
    """
    own, base = _name_of(fields), fields.get("base_model")
    if not isinstance(base, str) or not base:
        return BaseLicence(own)
    from huggingface_hub import HfApi, constants, errors

    try:
        found = HfApi(endpoint=constants.ENDPOINT).model_info(base, timeout=15)
    except errors.GatedRepoError:
        return BaseLicence(own, base, gated=True)
    except Exception:
        # Whether it is gated is not known then: the card decides, and the push will say more.
        return BaseLicence(own, base)
    theirs = found.card_data.to_dict() if found.card_data else {}
    missing = {} if own else carried_fields(theirs)
    missing.pop("language", None)
    return BaseLicence(own or _name_of(theirs), base, bool(found.gated), missing)


def _name_of(fields: Mapping[str, Any]) -> str | None:
    name = fields.get("license")
    if not isinstance(name, str) or name.strip().lower() in _UNKNOWN:
        return None
    if name.strip().lower() == "other":  # says nothing but where it is written
        name = fields.get("license_name") or fields.get("license_link")
        return name if isinstance(name, str) and name else None
    return name


def refuse_licence(base: BaseLicence, stated: str | None, repeated: bool, public: bool) -> None:
    """Refuse to publish what may not be, or of which nobody knows whether it may.

    Args:
        base: What is carried over.
        stated: The licence that the card will have.
        repeated: Whether it was stated on the command line.
        public: Whether everybody will see the target.

    Raises:
        RecipeError: The licence is unknown; or the base is gated or not for commercial use, and
            another licence is stated, or it would be public without stating the same.
    """
    if stated is None or stated.strip().lower() in {*_UNKNOWN, "other"}:
        raise RecipeError("the licence of the reference is unknown.", _STATE_IT)
    if not base.restricted:
        return
    why = "gated" if base.gated else "not for commercial use"
    name = escape(base.base or "the reference")
    theirs = escape(base.licence or "its own")
    if base.licence is not None and stated != base.licence:
        raise RecipeError(
            f"{name} is {why}: its licence {theirs} cannot become {escape(stated)}.",
            f"Leave --license out, or state {theirs}.",
        )
    if public and not repeated:
        raise RecipeError(
            f"{name} is {why} (licence {theirs}); a public copy of its layers needs your word.",
            f"Where its terms allow that, add --license {theirs}; or leave --public out.",
        )
