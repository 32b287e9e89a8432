"""After the shape of clustered learning (IFCA): the server keeps several models, and each node is sent one of them."""

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

from tests.flower.harness import CLIENTS, ROUNDS, aligned, assert_same, identity, make_net, run_app, torch_client


class Clusters(FedAvg):
    """Two models, for nodes of even and of odd number."""

    def __init__(self, folder):
        super().__init__(fraction_evaluate=0.0, min_train_nodes=CLIENTS, min_available_nodes=CLIENTS)
        self.folder = folder
        self.models = [ArrayRecord(make_net(seed).state_dict()) for seed in (0, 1)]

    def configure_train(self, server_round, arrays, config, grid):
        for node in grid.get_node_ids():
            content = RecordDict({"arrays": self.models[node % 2], "config": ConfigRecord({"lr": 0.1})})
            yield Message(content, node, "train")

    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        for cluster in (0, 1):
            own = [reply for reply in replies if reply.metadata.src_node_id % 2 == cluster]
            self.models[cluster] = super().aggregate_train(server_round, own)[0]
        sizes = [float(abs(model["0.weight"].numpy()).sum()) for model in self.models]
        (self.folder / f"sizes-{server_round}.txt").write_text(str(sizes))
        return self.models[0], MetricRecord({"clusters": 2})


def serve(grid, wrap, folder):
    return wrap(Clusters(folder)).start(grid, ArrayRecord(make_net().state_dict()), num_rounds=ROUNDS)


def test_with_nothing_aligned_every_cluster_has_its_own_model(tmp_path):
    plain = run_app(serve, torch_client(), tmp_path / "plain")
    wrapped = run_app(serve, torch_client(), tmp_path / "identity", identity)
    assert_same(plain, wrapped)
    assert not wrapped.warnings


def test_that_all_clusters_are_aligned_to_one_model_is_warned_of_once(tmp_path):
    ran = run_app(serve, torch_client(), tmp_path / "aligned", aligned)
    assert sum("nodes are sent other models than the global one" in warning for warning in ran.warnings) == 1
