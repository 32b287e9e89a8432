"""When Flower's engine fails itself: its reason in a line, and no ServerApp that waits for clients for ever."""

import threading
import time

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedrebasin import RebasinError
from fedrebasin.simulations import InlineGrid, on_engine


class SilentGrid(InlineGrid):
    """Clients that never answer; messages and replies go the way of Flower's own grids."""

    def __init__(self):
        super().__init__(ClientApp(), 1)
        self.asked = threading.Event()

    def push_messages(self, messages):
        return [str(number) for number, _ in enumerate(messages)]

    def pull_messages(self, message_ids):
        self.asked.set()
        return []

    def send_and_receive(self, messages, *, timeout=None):
        waiting = set(self.push_messages(messages))
        while waiting:
            waiting -= {reply.metadata.reply_to_message_id for reply in self.pull_messages(waiting)}
            time.sleep(0.01)


def engine_that_fails(monkeypatch, grid, error, after_the_work=False):
    """Flower's engine, with its ServerApp in a thread as Flower does it, raises; the threads that it starts."""
    threads = []

    def serve(server_app):
        try:
            server_app(grid, Context(1, 1, {}, RecordDict(), {}))
        except Exception as raised:
            threads[0].raised = raised

    def run_simulation(server_app, client_app, clients, backend_config):
        threads.append(threading.Thread(target=serve, args=(server_app,)))
        threads[0].start()
        if after_the_work:
            threads[0].join()
        else:
            grid.asked.wait()
        raise error from ValueError("ActorPool is empty.\nand more")

    monkeypatch.setattr("flwr.simulation.run_simulation", run_simulation)
    return threads


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (RuntimeError("Ending simulation."), RebasinError, "Flower's engine: ValueError: ActorPool is empty."),
        (KeyboardInterrupt(), KeyboardInterrupt, ""),
    ],
)
def test_nobody_waits_for_an_engine_that_is_over(error, expected, message, monkeypatch):
    threads = engine_that_fails(monkeypatch, SilentGrid(), error)
    with pytest.raises(expected) as caught:
        on_engine("flower", ClientApp(), 1, lambda grid: grid.send_and_receive([Message(RecordDict(), 1, "train")]))
    assert str(caught.value) == message
    threads[0].join()
    assert "engine ended before the clients had answered" in str(threads[0].raised)


def test_what_the_work_raised_is_told_and_not_that_a_thread_failed(monkeypatch):
    def work(grid):
        raise RebasinError("a client failed")

    engine_that_fails(monkeypatch, SilentGrid(), RuntimeError("Exception in ServerApp thread"), after_the_work=True)
    with pytest.raises(RebasinError, match="a client failed"):
        on_engine("flower", ClientApp(), 1, work)
