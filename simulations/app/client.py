"""The clients of the simulations: they train what the message's config describes, and answer with sums on request."""

from collections.abc import Callable
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedrebasin import CalibrationError, RebasinError
from fedrebasin.strategies import register

from ..config import SimulationConfig
from ..training import Federation, reproducible

ClientEpochDone = Callable[[int, int], None]
SIMULATION = "simulation"


def make_client_app(partitioner: Any = None, epoch_done: ClientEpochDone | None = None) -> ClientApp:
    """A ClientApp that reads its simulation from the train messages.

    Args:
        partitioner: one of flwr-datasets, instead of the simulation's partition.
        epoch_done: called with the partition and the number of the epoch, in the client's process.
    """
    client_app = ClientApp(mods=[_reproducibly])
    federations: dict[SimulationConfig, Federation] = {}

    def federation_of(config: SimulationConfig) -> Federation:
        return federations.setdefault(config, Federation(config, partitioner))

    def remembered(context: Context) -> Federation:
        if SIMULATION not in context.state.config_records:
            raise CalibrationError("a request for sums came before any training, whose message describes the data")
        return federation_of(SimulationConfig.from_flower(context.state.config_records[SIMULATION]))

    @client_app.train()
    def train(message: Message, context: Context) -> Message:
        values = message.content.config_records["config"]
        config = SimulationConfig.from_flower(values)
        federation = federation_of(config)
        partition, nodes = int(context.node_config["partition-id"]), int(context.node_config["num-partitions"])
        if nodes != config.clients:
            raise RebasinError(f"the federation has {nodes} nodes where the simulation has {config.clients} clients")
        # A query does not say what it is about, and in a deployment nothing but this lasts until it comes.
        context.state[SIMULATION] = ConfigRecord(dict(config.to_flower()))
        server_round = int(str(values["server-round"]))
        model = federation.client_model(partition, server_round)
        if not federation.starts_alone(server_round):
            model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
        report = None if epoch_done is None else lambda epoch: epoch_done(partition, epoch)
        loss, examples = federation.train_client(model, partition, server_round, report)
        content = RecordDict(
            {
                "arrays": ArrayRecord(model.state_dict()),
                "metrics": MetricRecord({"num-examples": examples, "train-loss": loss}),
                "client": ConfigRecord({"partition-id": partition}),
            }
        )
        return Message(content, reply_to=message)

    register(
        client_app,
        model=lambda context: remembered(context).server_model(),
        batches=lambda context: remembered(context).client_batches(int(context.node_config["partition-id"])),
        device=lambda context: str(remembered(context).device),
    )
    return client_app


def _reproducibly(message: Message, context: Context, call_next: Callable[[Message, Context], Message]) -> Message:
    """Sums are rounded alike wherever a client answers, as training is."""
    with reproducible():
        return call_next(message, context)


app = make_client_app()
