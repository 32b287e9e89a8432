"""Sums from the clients that took part in a round, added up or one by one: the one door that they come in by.

No client's sums count for more than some times what is usual, and with a robust strategy inside those that contradict
the others' are left out, whatever is done with them.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from logging import WARNING
from typing import Any

from torch import Tensor

from fedrebasin.devices import move
from fedrebasin.errors import CalibrationError, reason
from fedrebasin.sums import Statistic, Sums, add_sums

from ..flower import log
from ..sums import Question, ask, encode_sums
from .agreement import Judge, Means, contradicting
from .proportion import Answer, in_proportion
from .round import Round

TIMEOUT = 600.0
#: Bytes of sums that are held at the same time where each client's are compared with the others'.
MOST_HELD = 2**32

Shapes = tuple[tuple[str, tuple[int, ...]], ...]


def summed(
    round_: Round,
    statistic: Statistic[Any],
    state: Mapping[str, Tensor],
    timeout: float = TIMEOUT,
    max_examples: int | None = None,
    judge: Judge | None = None,
) -> tuple[dict[str, Tensor], int]:
    """A statistic of one model, over the data of all clients of the round.

    Args:
        round_: whose clients are asked.
        statistic: what to sum.
        state: the model that every client runs; a second one is a setting of the statistic.
        timeout: seconds to wait for the slowest.
        max_examples: how many examples are enough of each client; None for all.
        judge: see :func:`each`.

    Returns:
        the sums, on the round's device, and how many clients were left out: those without usable sums, those whose sums
        have another form than most, and those that :func:`each` leaves out.

    Raises:
        CalibrationError: if no client gave sums.
    """
    question = Question(statistic, encode_sums(state))
    totals: dict[Shapes, dict[str, Tensor]] = {}
    answered: Counter[Shapes] = Counter()
    for _, sums in each(round_, lambda _: question, timeout, max_examples, judge):
        shapes = shapes_of(sums)
        totals[shapes] = add_sums(totals.get(shapes, {}), sums)
        answered[shapes] += 1
    if not totals:
        raise CalibrationError(f"{statistic.name}: no client sent sums")
    usual = usual_shapes(answered, statistic.name)
    return totals[usual], len(round_.replies) - answered[usual]


def each(
    round_: Round,
    question: Callable[[int], Question],
    timeout: float = TIMEOUT,
    max_examples: int | None = None,
    judge: Judge | None = None,
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """A statistic of each client on its own data, one client at a time: Gram matrices are larger than models.

    With a robust strategy inside all are held and compared; those that contradict the others' are left out and logged.

    Args:
        round_: whose clients are asked.
        question: for the client at a position in ``round_.replies``.
        timeout: seconds to wait for the slowest.
        max_examples: how many examples are enough of each client; None for all.
        judge: by what sums are compared; None by their means.

    Yields:
        the client's position and its sums, on the round's device, as they arrive, none larger than usual (see
        :func:`in_proportion`); clients without usable sums are left out.

    Raises:
        CalibrationError: with a robust strategy, if there are none, or more than :data:`MOST_HELD`.
    """
    if round_.grid is None:
        raise CalibrationError("there is no grid to ask clients through: configure_train was not called")
    positions = {reply.node_id: position for position, reply in enumerate(round_.replies)}
    questions = {node_id: question(position) for node_id, position in positions.items()}
    statistics = {positions[node_id]: asked.statistic for node_id, asked in questions.items()}
    found = ask(round_.grid, questions, timeout=timeout, message_type=round_.query_type, max_examples=max_examples)
    arriving = ((positions[node_id], move(sums, round_.device)) for node_id, sums in found)
    if not round_.robust:
        yield from in_proportion(round_, arriving, statistics.__getitem__, max_examples)
        return
    who = next(iter(statistics.values())).name if statistics else "sums"
    held = list(in_proportion(round_, _held(arriving, who), statistics.__getitem__, max_examples))
    yield from _agreeing(round_, alike(held, who), Means() if judge is None else judge, who)


def _held(answers: Iterator[Answer], who: str) -> Iterator[Answer]:
    total = 0
    for position, sums in answers:
        total += sum(tensor.nbytes for tensor in sums.values())
        if total > MOST_HELD:
            raise CalibrationError(
                f"{who}: the clients' sums are more than {MOST_HELD:g} bytes, which cannot be held to compare them as "
                "a robust strategy does: ask fewer clients, for less (RegMean: max_features), or use FedAvg inside"
            )
        yield position, sums


def _agreeing(round_: Round, answers: Sequence[Answer], judge: Judge, who: str) -> Iterator[Answer]:
    terms: dict[int, Sums] = {}
    nodes = [reply.node_id for reply in round_.replies]
    for position, sums in answers:
        try:
            terms[position] = judge.terms(position, sums)
        except Exception as error:  # a stranger's sums
            log(WARNING, "%s: left out node %d: %s", who, nodes[position], reason(error))
    found = contradicting(terms, judge)
    for position, far in found.items():
        log(WARNING, "%s: left out node %d: its sums contradict the others' (%.2g)", who, nodes[position], far)
    for position, sums in answers:
        if position in terms and position not in found:
            yield position, sums


def alike(answers: Sequence[Answer], who: str) -> list[Answer]:
    """The answers whose sums have the form that most have; sums of another form cannot be added to them.

    Raises:
        CalibrationError: if there are none.
    """
    if not answers:
        raise CalibrationError(f"{who}: no client sent sums")
    usual = usual_shapes(Counter(shapes_of(sums) for _, sums in answers), who)
    return [(position, sums) for position, sums in answers if shapes_of(sums) == usual]


def shapes_of(sums: Mapping[str, Tensor]) -> Shapes:
    """Names and shapes."""
    return tuple(sorted((key, tuple(tensor.shape)) for key, tensor in sums.items()))


def usual_shapes(answered: Counter[Shapes], who: str) -> Shapes:
    """The form of most answers, the first one of equals; the others are logged."""
    ((usual, count),) = answered.most_common(1)
    if others := answered.total() - count:
        log(WARNING, "%s: left out %d clients whose sums have another form than most", who, others)
    return usual
