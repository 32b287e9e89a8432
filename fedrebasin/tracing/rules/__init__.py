"""One file for each family of operators: what ties the axes of results to those of arguments.

Importing the room registers all of them.
"""

from fedrebasin.tracing.rules import elementwise, index, linear, norm, order, recurrent, shape, space, write
