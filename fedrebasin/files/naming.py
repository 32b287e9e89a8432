"""A checkpoint under the names of its model: what trainers and libraries call the tensors in files, taken back."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from fedrebasin.errors import DataError, MergeError, some
from fedrebasin.files.checkpoints import Checkpoint
from fedrebasin.keys import is_averaged, prefixes_of
from fedrebasin.state import is_counter, missing_ties

_SHOWN = 3


@dataclass(frozen=True)
class Names:
    """What the tensors of a model are called.

    Args:
        like: the model's tensors, by name; counters (single integers) may be missing from a file.
        ties: names that are one tensor, of which a file may hold any.
        in_files: what a library calls them in its files, where that is something else.
        whole: whether a file may hold other tensors beside, which are left out and named.
    """

    like: Mapping[str, Tensor]
    ties: Sequence[tuple[str, ...]] = ()
    in_files: Mapping[str, str] = field(default_factory=dict)
    whole: bool = False

    @property
    def optional(self) -> frozenset[str]:
        """Names that a file may lack, each for itself."""
        tied = {name for names in self.ties for name in names}
        return frozenset(name for name, tensor in self.like.items() if name in tied or is_counter(tensor))

    def missing(self, found: Collection[str]) -> list[str]:
        """The names that are not there, neither as such nor under a tied one."""
        supplied = missing_ties(dict.fromkeys(found), self.like, self.ties)
        return [
            name
            for name, tensor in self.like.items()
            if name not in found and name not in supplied and not is_counter(tensor)
        ]


def named_as(checkpoint: Checkpoint, names: Names | None, prefix: str = "") -> Checkpoint:
    """The checkpoint with the tensors of a model, under the model's names; each choice is in ``choices``.

    Args:
        checkpoint: as it was loaded.
        names: of the model; None where it is not known.
        prefix: the one to take, where a file has several copies of the model; "" chooses.

    Returns:
        the tensors under their names, or as they are where they are not the model's.

    Raises:
        DataError: if no key has the prefix.
        MergeError: if the file has several models that are as likely, with their prefixes.
        SpecError: if there are two keys for one name.
    """
    if prefix:
        checkpoint = _under(checkpoint, prefix)
    if names is None:
        return checkpoint.without_prefix()
    if names.in_files:
        checkpoint = checkpoint.called(_as_in_model(list(checkpoint.state), names.in_files))
    found = checkpoint.without_prefix(list(names.like))
    if names.missing(found.state):
        found = _by_prefix(checkpoint, names) or found
    return _without_others(found, names) if names.whole and not names.missing(found.state) else found


def _under(checkpoint: Checkpoint, prefix: str) -> Checkpoint:
    under = {key.removeprefix(prefix): key for key in checkpoint.state if key.startswith(prefix)}
    if not under:
        begins = sorted({key.partition(".")[0] + "." for key in checkpoint.state})[:_SHOWN]
        raise DataError(f"{checkpoint.path}: no key begins with {prefix!r}; they begin with {', '.join(begins)}, ...")
    left = len(checkpoint.state) - len(under)
    line = f"{checkpoint.path}: took the {len(under)} tensors under {prefix!r}, left out {left} others"
    return _noting(checkpoint.called(under), line if left else "")


def _as_in_model(keys: list[str], in_files: Mapping[str, str]) -> dict[str, str]:
    known = {key: name for name, key in in_files.items()}
    return {known.get(key, key): key for key in keys}


def _by_prefix(checkpoint: Checkpoint, names: Names) -> Checkpoint | None:
    """The tensors under the one prefix that has all of the model's names."""
    optional = names.optional
    shapes = {key: tensor.shape for key, tensor in checkpoint.state.items()}
    found = {
        prefix: keys
        for prefix, keys in prefixes_of(names.like.keys() - optional, list(shapes), optional).items()
        if all(shapes[key] == names.like[name].shape for name, key in keys.items())
    }
    if not found:
        return None
    prefix, *others = found
    trained = [one for one in found if not is_averaged(one)]
    if len(trained) > 1:
        listed = ", ".join(repr(one) if one else "no prefix" for one in trained)
        raise MergeError(f"{checkpoint.path}: several copies of the model, under {listed}: choose one with --prefix")
    left = [key for key in checkpoint.state if key not in found[prefix].values()]
    line = f"{checkpoint.path}: took the tensors {f'under {prefix!r}' if prefix else 'without a prefix'}"
    line += f", not {', '.join(map(repr, others))} (--prefix chooses)" if others else ""
    line += f"; left out {some(left, _SHOWN)}" if left else ""
    return replace(_noting(checkpoint.called(found[prefix]), line), prefix=checkpoint.prefix)


def _without_others(checkpoint: Checkpoint, names: Names) -> Checkpoint:
    """Only the model's tensors."""
    left = [key for key in checkpoint.state if key not in names.like]
    if not left:
        return checkpoint
    kept = {key: key for key in checkpoint.state if key in names.like}
    return _noting(
        checkpoint.called(kept), f"{checkpoint.path}: left out {some(left, _SHOWN)}, which the model does not have"
    )


def _noting(checkpoint: Checkpoint, line: str) -> Checkpoint:
    return replace(checkpoint, choices=(*checkpoint.choices, line)) if line else checkpoint
