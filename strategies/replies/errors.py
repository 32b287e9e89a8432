"""What is wrong with a reply."""

from fedrebasin.errors import RebasinError


class RecordError(RebasinError):
    """An ArrayRecord is not a model that can be worked with."""


class FormError(RecordError):
    """It is of another form than expected: keys, names of records, shapes, dtypes.

    Args:
        what: is wrong.
        advice: what to do where all replies are like that, which is no accident then.
    """

    def __init__(self, what: str, advice: str = "") -> None:
        super().__init__(what)
        self.advice = advice
