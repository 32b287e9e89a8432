"""What is used of Flower beyond its documented modules, in one file: a test looks for it in the installed version."""

from importlib import import_module
from logging import getLogger

from flwr.app import Message, Metadata
from flwr.serverapp.strategy.fedopt import FedOpt

__all__ = ["CLIENT_RAISED", "FedOpt", "deliver", "enter_task", "is_legacy", "log", "name_message"]

#: As Flower's own: ``log(INFO, "%d rounds", 3)``.
log = getLogger("flwr").log

#: The code of an error reply of a client that raised.
CLIENT_RAISED = 2

#: Where the server's side lived before flwr.serverapp.
_LEGACY = ("flwr.server.", "flwr.compat.")


def is_legacy(part: object) -> bool:
    """Whether an object is of Flower's former server API or derived from it; that API is not loaded to tell."""
    return any(kind.__module__.startswith(_LEGACY) for kind in type(part).__mro__)


def enter_task(run_id: int) -> None:
    """Let this process make messages outside a run: flwr >= 1.38 asks for the identity of the task it works for."""
    try:
        identity = import_module("flwr.supercore.task_identity").TaskIdentity
    except ModuleNotFoundError:
        return
    identity.run_id, identity.node_id, identity.task_id = run_id, 1, 1


def name_message(message: Message, message_id: str) -> None:
    """Give a message the id that a reply to it refers to, as a grid does when it is pushed."""
    message.metadata.__dict__["_message_id"] = message_id


def deliver(message: Message, metadata: Metadata) -> Message:
    """The message with the metadata of another, so that its reader takes it for that one."""
    message.__dict__["_metadata"] = metadata
    return message
