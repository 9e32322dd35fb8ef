"""What tests of several rooms share."""

from __future__ import annotations

import shutil
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.gatewayed import House, gatewayed
from tests.tiny_model import write_tiny_tokenizer


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with the tiny tokenizer, which takes seconds to write."""
    path = tmp_path_factory.mktemp("base")
    write_tiny_tokenizer(path)
    return path


@pytest.fixture
def root(tiny_base: Path, tmp_path: Path) -> Path:
    """Return a directory in which the tiny fleet is quickly written."""
    shutil.copytree(tiny_base, tmp_path / "specialists" / "base")
    return tmp_path


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def _module_house(
    tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[House]:
    root = tmp_path_factory.mktemp("fleet")
    shutil.copytree(tiny_base, root / "specialists" / "base")
    async with gatewayed(root) as house:
        yield house


@pytest_asyncio.fixture(loop_scope="module")
async def house(_module_house: House) -> AsyncGenerator[House]:
    """Yield the module's gateway in front of one fake worker, which is well and idle."""
    await _module_house.heal()
    yield _module_house
    await _module_house.heal()
