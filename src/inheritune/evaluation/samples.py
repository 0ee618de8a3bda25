"""Generate a few words with a model, so that people see what its loss means."""

from collections.abc import Sequence
from pathlib import Path


def continue_prompts(model_dir: Path, prompts: Sequence[str], tokens: int) -> list[str]:
    """Continue prompts greedily with plain transformers.

    Args:
        tokens: Most tokens to generate for each prompt; fewer if the model ends the document.

    Returns:
        The text after each prompt, without the prompt.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(
        model_dir, local_files_only=True, trust_remote_code=False
    )
    model = AutoModelForCausalLM.from_pretrained(
        model_dir,
        dtype=torch.float32,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
    ).eval()
    texts = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt")
        with torch.no_grad():
            out = model.generate(
                input_ids=ids["input_ids"],
                attention_mask=ids["attention_mask"],
                max_new_tokens=tokens,
                do_sample=False,
                pad_token_id=tokenizer.eos_token_id,
            )
        added = out[0, ids["input_ids"].shape[1] :]
        texts.append(str(tokenizer.decode(added, skip_special_tokens=True)))
    return texts
