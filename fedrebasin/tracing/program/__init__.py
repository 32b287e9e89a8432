# mypy: implicit-reexport
"""A model as a program: exported, simplified, and read operator by operator."""

from fedrebasin.tracing.program.exporting import exported
from fedrebasin.tracing.program.inputs import preserved, tensors_of
from fedrebasin.tracing.program.lightning import usage_of
from fedrebasin.tracing.program.program import Reading
from fedrebasin.tracing.program.usage import Forward, Usage
