# mypy: implicit-reexport
"""What came out, and how it is shown: figures, studies, tables, charts and pages."""

from .comparison import Comparison
from .difference_figure import draw_difference
from .experiment_figure import draw
from .figures import REFERENCES, Bin, Figures, Row
from .flat import write_table
from .page import write_experiment, write_page, write_report
from .path_figure import draw_paths
from .picture import write_picture
from .provenance import Origin, usable_cores
from .results import read_results, write_results
from .sentences import in_words
from .study import Setting, Study, Summary, expand
from .table import COLUMNS, cells
