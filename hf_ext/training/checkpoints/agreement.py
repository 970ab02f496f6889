"""Several processes that train together do a thing once, and all go on with its result or stop for the same reason."""

from collections.abc import Callable

from accelerate.utils import gather_object
from safetensors import SafetensorError


def agreed(function: Callable, *, here: bool = True):
    """Call `function` on the processes where `here` is set; all wait for them.

    Returns:
        What the first of those processes got.

    Raises:
        OSError, ValueError, RuntimeError, SafetensorError: of the first that failed, on every process.
    """
    outcome = None
    if here:
        try:
            outcome = (function(), None)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            outcome = (None, error)
    outcomes = [found for found in gather_object([outcome]) if found is not None]
    for _, error in outcomes:
        if error is not None:
            raise error
    return outcomes[0][0]
