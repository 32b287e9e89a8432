"""Running statistics behind strategies that take steps: what was measured on data is averaged, and never stepped.

FedAdam moves every entry by about its learning rate, wherever the replies agree that it goes: of a variance of 0.01 it
makes -0.09, and the next evaluation is not a number.
"""

from fedrebasin.state import State, is_statistic

from ..replies import Template
from ..traits import Traits
from .alignment import ReplyAlignment


def averaged_statistics(mean: State | None, alignment: ReplyAlignment, template: Template, traits: Traits) -> State:
    """The entries of the replies' mean that count instead of the strategy's: running statistics and counters.

    None where nothing is aligned or the strategy takes no steps, nor with differential privacy, whose noise they lack.

    Args:
        mean: the weighted mean of the aligned replies, if it is one of models.
        alignment: of the replies.
        template: of the global model.
        traits: of the inner strategy.
    """
    if mean is None or alignment.idle or traits.private or not traits.steps_statistics:
        return {}
    named = frozenset() if alignment.spec is None else alignment.spec.statistics
    return {
        key: mean[key]
        for key, form in template.forms.items()
        if key in mean and (key in named or is_statistic(key) or not form.is_float)
    }
