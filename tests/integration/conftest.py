"""The chain, on both back-ends in turn, with one registered model: see chain_world.py."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache

import pytest

from commonweight.chain.anvil import find_anvil
from commonweight.chain.local import Backend, LocalChain
from tests.integration.chain_world import ChainWorld, build_world
from tests.integration.cli_world import built_cli_world

__all__ = ["built_cli_world"]  # pytest finds the session's fixtures by their names here


@pytest.fixture(scope="session")
def chains() -> Iterator[Callable[[Backend], LocalChain]]:
    """Each back-end's only chain, started when it is first asked for."""
    with ExitStack() as running:
        yield cache(lambda backend: running.enter_context(LocalChain.start(backend, accounts=12)))


@pytest.fixture(scope="session")
def worlds() -> Callable[[LocalChain], ChainWorld]:
    """What is registered on a chain, once."""
    return cache(build_world)


@pytest.fixture(params=["anvil", "embedded"])
def chain_backend(request: pytest.FixtureRequest, chains: Callable[[Backend], LocalChain]) -> LocalChain:
    """A missing anvil is a failure, unless somebody says that it is meant to be missing."""
    without = os.environ.get("COMMONWEIGHT_WITHOUT_ANVIL") == "1"
    if request.param == "anvil" and find_anvil() is None and without:
        pytest.skip("COMMONWEIGHT_WITHOUT_ANVIL=1")
    return chains(request.param)


@pytest.fixture
def registered_world(chain_backend: LocalChain, worlds: Callable[[LocalChain], ChainWorld]) -> ChainWorld:
    return worlds(chain_backend)


@pytest.fixture
def world(registered_world: ChainWorld) -> Iterator[ChainWorld]:
    """The model as registered: what a test does is undone after it."""
    snapshot = registered_world.chain.request("evm_snapshot")
    yield registered_world
    assert registered_world.chain.request("evm_revert", snapshot) is True
