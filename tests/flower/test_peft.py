"""Apps after the shape of Flower's LLM fine-tuning: a language model with LoRA, sent whole or its adapters alone."""

import warnings

import pytest
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from fedrebasin import PermutationSpec, SpecError
from fedrebasin.simulations import InlineGrid
from fedrebasin.strategies import FedRebasin
from tests.flower.harness import ROUNDS, assert_keeps_working, partition_of
from tests.flower.orders import assert_orders_do_not_matter

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

RANK = 4


def make(seed=0):
    """GPT-2 with adapters that are not zero; no dropout, which tells units by their place."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 40, "n_positions": 16}
        config = transformers.GPT2Config(
            **sizes, bos_token_id=0, eos_token_id=0, embd_pdrop=0.0, resid_pdrop=0.0, attn_pdrop=0.0
        )
        model = transformers.GPT2LMHeadModel(config)
        settings = peft.LoraConfig(r=RANK, fan_in_fan_out=True, task_type="CAUSAL_LM", init_lora_weights=False)
        return peft.get_peft_model(model, settings)


def tokens(partition):
    return torch.randint(1, 40, (8, 6), generator=torch.Generator().manual_seed(partition))


def whole(model):
    return model.state_dict()


#: What an app sends, and how it takes it.
SENT = {
    "whole": (whole, lambda model, state: model.load_state_dict(state)),
    "adapters": (peft.get_peft_model_state_dict, lambda model, state: peft.set_peft_model_state_dict(model, state)),
}


def client_of(sent):
    read, load = SENT[sent]

    def client(mods=()):
        app = ClientApp(mods=list(mods))

        @app.train()
        def train(message, context):
            model = make().train()
            load(model, message.content["arrays"].to_torch_state_dict())
            optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], 0.01)
            inputs = tokens(partition_of(context))
            for _ in range(2):
                loss = model(input_ids=inputs, labels=inputs).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            content = {
                "arrays": ArrayRecord(read(model)),
                "metrics": MetricRecord({"train_loss": float(loss.detach()), "num-examples": len(inputs)}),
            }
            return Message(RecordDict(content), reply_to=message)

        return app

    return client


def serve_of(sent):
    read, load = SENT[sent]

    def serve(grid, wrap, folder):
        def keep(server_round, arrays):
            if server_round == ROUNDS:
                model = make()
                load(model, arrays.to_torch_state_dict())
                model.save_pretrained(folder / "peft")
            return MetricRecord()

        strategy = wrap(FedAvg(fraction_evaluate=0.0))
        return strategy.start(grid, ArrayRecord(read(make())), num_rounds=ROUNDS, evaluate_fn=keep)

    return serve


def outputs_of(sent):
    def outputs(state):
        model = make().eval()
        SENT[sent][1](model, state)
        with torch.no_grad():
            return model(input_ids=tokens(7)).logits

    return outputs


def spec():
    return PermutationSpec.trace(make().train(), {"input_ids": tokens(0), "labels": tokens(0)})


def test_the_wrapped_app_leaves_the_same_behind(tmp_path):
    traced = spec()
    assert traced.checked
    assert RANK in {group.size for group in traced.groups.values()}
    wrap = lambda strategy: FedRebasin(strategy, spec=traced)  # noqa: E731
    ran = assert_keeps_working(serve_of("whole"), client_of("whole")(), tmp_path, wrap)
    assert "peft/adapter_config.json" in ran.files
    assert ran.warnings == ()


def test_clients_in_orders_of_their_own_make_one_model(tmp_path):
    assert_orders_do_not_matter(serve_of("whole"), client_of("whole"), spec(), outputs_of("whole"), tmp_path)


def test_adapters_alone_are_aligned_along_their_ranks_and_the_rest_is_told(tmp_path):
    traced = spec()
    wrap = lambda strategy: FedRebasin(strategy, spec=traced)  # noqa: E731
    ran = assert_keeps_working(serve_of("adapters"), client_of("adapters")(), tmp_path, wrap)
    assert all("lora_" in key and ".default." not in key for key in ran.result.arrays)
    assert len(ran.warnings) == 1
    assert "are frozen" in ran.warnings[0]
    assert "base_layer" in ran.warnings[0]


def test_adapters_alone_in_orders_of_their_own_make_one_model(tmp_path):
    traced, sent = spec(), peft.get_peft_model_state_dict(make())
    part = traced.rename_like(sent).restrict(sent)
    assert {group.size for group in part.groups.values() if not group.frozen} == {RANK}
    sides = serve_of("adapters"), client_of("adapters")
    assert_orders_do_not_matter(*sides, traced, outputs_of("adapters"), tmp_path, part)


def test_prompts_are_no_part_of_the_model_and_are_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
        model = peft.get_peft_model(make().unload(), settings)
    strategy = FedRebasin(FedAvg(), spec=PermutationSpec.trace(model, {"input_ids": tokens(0)}))
    with pytest.raises(SpecError, match=r"prompt_embeddings: shape \(3, 16\) is not in the spec"):
        strategy.start(InlineGrid(client_of("whole")(), 3), ArrayRecord(peft.get_peft_model_state_dict(model)))
