"""Translate what other programs call a setting into the key of a recipe, with its unit."""

_STEPS = "in tokens: steps times train.batch_tokens"
_EPOCHS = "in tokens: epochs times the tokens of the text, with data.allow_repeat: true"
_BATCH = "in tokens: sequences times train.seq_len"

# The key, its unit where that differs, and what others call it.
_NAMES = {
    ("train.learning_rate", ""): "lr max_lr peak_lr base_lr",
    ("train.min_learning_rate", ""): "min_lr lr_min eta_min",
    ("train.tokens", _STEPS): "max_steps num_steps total_steps train_steps max_iters iterations",
    ("train.tokens", _EPOCHS): "epochs num_epochs max_epochs num_train_epochs",
    ("train.batch_tokens", _BATCH): "batch_size global_batch_size train_batch_size",
    ("train.batch_tokens", "in tokens; accumulation follows from it and train.micro_batch"): (
        "gradient_accumulation_steps accumulation_steps grad_accum"
    ),
    ("train.micro_batch", "in sequences"): (
        "per_device_train_batch_size micro_batch_size device_batch_size"
    ),
    ("train.warmup_tokens", _STEPS): "warmup_steps warmup_iters num_warmup_steps",
    ("train.warmup_tokens", "in tokens: the share times train.tokens"): "warmup_ratio",
    ("train.eval_every", _STEPS): "eval_steps eval_interval val_interval",
    ("train.save_minutes", "in minutes"): "save_steps save_interval save_every",
    ("train.timeout_minutes", "in minutes"): "ddp_timeout train_timeout_seconds",
    ("train.keep", "a number of checkpoints"): "save_total_limit",
    ("train.seq_len", "in tokens"): (
        "block_size max_seq_length max_seq_len max_length context_length sequence_length"
    ),
    ("train.clip_norm", ""): "grad_clip max_grad_norm gradient_clipping gradient_clip_val",
    ("train.weight_decay", ""): "wd",
    ("train.schedule", ""): "scheduler lr_schedule lr_scheduler lr_scheduler_type",
    ("train.precision", ""): "bf16 fp16 mixed_precision torch_dtype",
    ("train.betas", "a list of two"): "beta1 beta2 adam_beta1 adam_beta2",
    ("inherit.layers", "a number of layers"): (
        "num_layers n_layers n_layer num_hidden_layers depth"
    ),
    ("reference.model", "a Hub id or a directory"): (
        "model_name_or_path model_name model_id base_model pretrained teacher teacher_model"
    ),
    ("data.source", "a Hub dataset or files"): "dataset dataset_name train_file data_path corpus",
    ("data.config", ""): "dataset_config dataset_config_name subset",
    ("data.val_source", ""): "validation_file val_file eval_dataset",
    ("data.text_column", ""): "text_field dataset_text_field",
}
_KEYS = {name: meaning for meaning, names in _NAMES.items() for name in names.split()}


def key_for(name: str) -> tuple[str, str] | None:
    """The dotted key that another program's name stands for, and its unit; None if unknown."""
    return _KEYS.get(name.lower().replace("-", "_"))
