"""quickstart: the server. Two lines make it align the clients' networks before it averages them."""

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

# fedrebasin, line 1 of 2
from fedrebasin import PermutationSpec, strategies
from quickstart.task import Net, load_test_data, test

# Create ServerApp
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Main entry point for the ServerApp."""
    # Read run config
    num_rounds = int(context.run_config["num-server-rounds"])
    num_clients = int(context.run_config["num-clients"])
    lr = float(context.run_config["learning-rate"])
    save_path = str(context.run_config["save-path"])

    # Load global model
    global_model = Net()
    arrays = ArrayRecord(global_model.state_dict())

    # Initialize FedAvg strategy
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=num_clients, min_available_nodes=num_clients)
    # fedrebasin, line 2 of 2: the second argument is any valid input of the model
    strategy = strategies.FedRebasin(strategy, spec=PermutationSpec.trace(global_model, torch.zeros(2, 1, 8, 8)))

    # Start strategy, run FedAvg for `num_rounds`
    result = strategy.start(
        grid=grid,
        initial_arrays=arrays,
        train_config=ConfigRecord({"lr": lr}),
        num_rounds=num_rounds,
        evaluate_fn=global_evaluate,
    )

    # Save final model to disk
    if save_path:
        torch.save(result.arrays.to_torch_state_dict(), save_path)


def global_evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    """Evaluate the global model on data that no client has seen."""
    model = Net()
    model.load_state_dict(arrays.to_torch_state_dict())
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    test_loss, test_acc = test(model, load_test_data(), device)
    return MetricRecord({"accuracy": test_acc, "loss": test_loss})
