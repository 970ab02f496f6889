"""The groups of a fingerprint: which may change by name, and which arguments belong to them. Quick to import."""

# groups that --allow_change takes, beside a recipe's sections
CHANGEABLE = ("model", "adapter", "data", "batch", "processes", "precision", "kernels", "seed", "optimizer", "versions")
# of the Trainer's arguments, by group
ARGUMENTS = {
    "batch": (
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "tokens_per_batch",
        "tokens_per_batch_cost",
        "length_pool_size",
        "dataloader_drop_last",
        "dataloader_num_workers",
        "train_sampling_strategy",
    ),
    "precision": ("bf16", "fp16", "fp8"),
    "seed": ("seed", "data_seed"),
    "states": ("optim", "optim_args", "matrix_optimizer"),
    "optimizer": (
        "learning_rate",
        "matrix_learning_rate",
        "weight_decay",
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
        "muon_momentum",
        "muon_beta2",
        "layer_rate_decay",
        "lr_scheduler_type",
        "lr_scheduler_kwargs",
        "warmup_steps",
        "max_grad_norm",
        "label_smoothing_factor",
        "z_loss_weight",
        "neftune_noise_alpha",
        "ema_decay",
        "ema_warmup",
    ),
}
