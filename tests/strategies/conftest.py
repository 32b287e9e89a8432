import gc

import pytest


@pytest.fixture(autouse=True, scope="session")
def _cheap_collections():
    """QFedAvg and Bulyan collect garbage once per reply: what the imports left need not be walked each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
