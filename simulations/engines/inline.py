"""A Flower federation inside this process: no engine, no other processes, the same answers in the same order."""

from collections.abc import Iterable, Mapping
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict, UserConfigValue
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedrebasin.strategies import flower

RUN_ID = 1


def enter_task() -> None:
    """Let this process make messages outside a run."""
    flower.enter_task(RUN_ID)


class InlineGrid(Grid):
    """Runs the ClientApp in this process for every message, in the order of the nodes.

    Nodes are 1 .. n and carry ``partition-id`` and ``num-partitions`` as Flower's simulation engine sets them; their
    contexts last as long as the grid. A client that raises answers with an error, one that returns nothing is silent.

    Args:
        client_app: called for every message.
        num_supernodes: number of nodes.
        run_config: what the clients see as ``context.run_config``.
    """

    def __init__(
        self, client_app: ClientApp, num_supernodes: int, run_config: Mapping[str, UserConfigValue] | None = None
    ) -> None:
        enter_task()
        self._client_app = client_app
        self._contexts = {
            partition + 1: Context(
                run_id=RUN_ID,
                node_id=partition + 1,
                node_config={"partition-id": partition, "num-partitions": num_supernodes},
                state=RecordDict(),
                run_config=dict(run_config or {}),
            )
            for partition in range(num_supernodes)
        }
        self._replies: dict[str, Message] = {}
        self._pushed = 0
        self._run: Any = None

    def set_run(self, run: Any) -> None:
        """Remember the run that ``run`` returns."""
        self._run = run

    @property
    def run(self) -> Any:
        """The run that was set, or None: there is none in this process."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """1 .. n."""
        enter_task()  # another engine may have worked in this process since
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Run the clients now; their replies wait to be pulled."""
        pushed = []
        for message in sorted(messages, key=lambda message: message.metadata.dst_node_id):
            self._pushed += 1
            message_id = str(self._pushed)
            flower.name_message(message, message_id)
            reply = self._answer(message)
            if reply is not None:
                self._replies[message_id] = reply
            pushed.append(message_id)
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies that have not been pulled yet."""
        return [self._replies.pop(message_id) for message_id in message_ids if message_id in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """The replies in the order of the nodes, whatever the order of the messages; nothing waits."""
        return self.pull_messages(self.push_messages(messages))

    def _answer(self, message: Message) -> Message | None:
        context = self._contexts[message.metadata.dst_node_id]
        # the copy keeps a client that changes what it was sent from changing what the server holds
        received = flower.deliver(Message(copy_records(message.content), reply_to=message), message.metadata)
        try:
            return self._client_app(received, context)
        except Exception as error:
            return Message(Error(flower.CLIENT_RAISED, f"{type(error).__name__}: {error}"), reply_to=message)


def copy_records(content: RecordDict) -> RecordDict:
    """The same values in new records: array data is shared (it is immutable), lists are copied."""
    copied = RecordDict()
    for name, record in content.items():
        if isinstance(record, ArrayRecord):
            copied[name] = ArrayRecord(dict(record))
            continue
        values: dict[str, Any] = {key: list(v) if isinstance(v, list) else v for key, v in record.items()}
        copied[name] = MetricRecord(values) if isinstance(record, MetricRecord) else ConfigRecord(values)
    return copied


def run_inline(
    server_app: ServerApp,
    client_app: ClientApp,
    num_supernodes: int,
    run_config: Mapping[str, UserConfigValue] | None = None,
) -> None:
    """Run a Flower app in this process, as ``flwr run .`` would with ``run_config``.

    To run a strategy alone: ``strategy.start(InlineGrid(client_app, n), initial_arrays, num_rounds=...)``.

    Raises:
        Exception: whatever the ServerApp raises.
    """
    grid = InlineGrid(client_app, num_supernodes, run_config)
    context = Context(run_id=RUN_ID, node_id=1, node_config={}, state=RecordDict(), run_config=dict(run_config or {}))
    server_app(grid, context)
