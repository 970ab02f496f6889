"""Training: arguments, Trainer, optimizers, schedules, recipes."""
