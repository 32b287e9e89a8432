# mypy: implicit-reexport
"""A model as a program: exported, simplified, and read operator by operator."""

from fedrebasin.tracing.program.exporting import exported
from fedrebasin.tracing.program.inputs import as_call, preserved, tensors_of
from fedrebasin.tracing.program.program import Reading
