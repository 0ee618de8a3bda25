"""Mask what gives access, before a text is written to a file or sent away."""

import re

MASK = "***"

_SECRETS = (
    # user:password@ of an address
    re.compile(r"(?<=://)[^/\s@'\"]+(?=@)"),
    # WANDB_API_KEY=..., api_key: ..., "token": "...", X-Amz-Signature=..., -H 'Authorization: ...'
    re.compile(
        r"(?i)(?<![a-z])(?P<name>[\w-]*(?:api_?key|access_?key|secret|token|password|passwd"
        r"|signature|authorization)(?:_id)?[\"']?\s*(?:=|:(?!//))\s*[\"']?(?:(?:bearer|basic)\s+)?)"
        r"(?!bearer\b|basic\b|[\"'<])[^\s\"',;&]{6,}"
    ),
    re.compile(r"(?i)\b(?P<name>bearer\s+)[\w.~+/=-]{8,}"),
    # tokens that say what they are: the Hub's, GitHub's, OpenAI's, AWS's
    re.compile(r"\b(?:hf_|gh[pousr]_|github_pat_|sk-|AKIA)[\w-]{8,}"),
)


def mask(text: str) -> str:
    """Replace tokens, passwords and keys in a text by ``***``; names of variables stay."""
    for secret in _SECRETS:
        text = secret.sub(lambda found: (found.groupdict().get("name") or "") + MASK, text)
    return text
