"""What the metrics of token log-likelihoods refuse."""


def check_log_likelihoods(rows: list[list[float]]) -> None:
    """None is above 0: a loss has the other sign."""
    for index, row in enumerate(rows):
        for place, value in enumerate(row):
            if value > 0:
                raise ValueError(
                    f"predictions[{index}][{place}]: {value} must be at most 0, the logarithm of a probability; of losses "
                    "change the sign"
                )
