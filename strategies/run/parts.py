"""Parts of a model: some arrays are sent, the others stay with the clients, each its own or all the same."""

from logging import INFO, WARNING

from fedrebasin import PermutationSpec, SpecError
from fedrebasin.errors import some
from fedrebasin.state import State, has_mean, missing_ties

from ..flower import log

_SHOWN = 3


def absent(spec: PermutationSpec, like: State) -> tuple[str, ...]:
    """The spec's keys that a part of its model does not have; none where it is not a part of it.

    Args:
        spec: of the whole model, under the names that are sent.
        like: what is sent.

    Raises:
        SpecError: if what is sent has positions for names, and there are fewer than the spec has keys.
    """
    tied = missing_ties(like, spec.shapes, spec.tied)
    left_out = tuple(key for key in spec.shapes if key not in like and key not in tied)
    if not like or not left_out:
        return ()
    if all(key.isdecimal() for key in like) and len(like) < len(spec.shapes):
        raise SpecError(
            f"{len(like)} arrays with positions for names where the spec has {len(spec.shapes)} keys: which part of "
            "the model they are cannot be told: send names, ArrayRecord(state_dict), or give spec.restrict(keys), "
            "whose keys they are paired with"
        )
    return () if any(key not in spec.shapes and has_mean(tensor) for key, tensor in like.items()) else left_out


def of_a_part(spec: PermutationSpec, like: State, own_frames: bool, quiet: bool) -> PermutationSpec:
    """The spec of a part of its model, and one line about it.

    Args:
        spec: of the whole model.
        like: what is sent.
        own_frames: whether every node gets the part back in its own order of units, which its local arrays have too:
            groups that both share may move.
        quiet: whether nothing is said.
    """
    torn = spec.torn(like)
    if not quiet:
        log(WARNING if torn and not own_frames else INFO, "%s", _sentence(spec, like, torn, own_frames))
    return spec.restrict(like, freeze_torn=not own_frames)


def _sentence(spec: PermutationSpec, like: State, torn: dict[str, str], own_frames: bool) -> str:
    left_out = [key for key in spec.shapes if key not in like]
    head = f"{len(left_out)} of the spec's {len(spec.shapes)} arrays stay with the clients ({some(left_out, _SHOWN)})"
    if not torn:
        return f"{head}; no group of the others has units in them"
    groups = some([f"{name} (with {key})" for name, key in torn.items()], _SHOWN)
    if own_frames:
        return (
            f"{head}; groups that have units in them are matched by what is sent, and nodes get their own order back: "
            f'{groups}; where these arrays are the same on all clients, use frame="server"'
        )
    free = any(not group.frozen for group in spec.restrict(like).groups.values())
    return (
        f"{head}; groups that have units in them are frozen{'' if free else ', and none is left to align'}: {groups}; "
        'where these arrays are each client\'s own, frame="client" aligns the groups as well'
    )
