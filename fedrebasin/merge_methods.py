"""How files are merged, by name; nothing is loaded, so that the command's help has it at once."""

METHODS = ("weight-matching", "frank-wolfe", "merge-many", "cycle-consistent", "average")
#: The methods that align to one model, which may be a base; they hold one model's pages at a time.
REFERENCED = ("weight-matching", "frank-wolfe", "average")
#: What merged weights may be written as.
DTYPES = ("float32", "float16", "bfloat16", "float64")
