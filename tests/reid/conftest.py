"""What several tests of this folder start from."""

from pathlib import Path

import pytest
from market_helpers import small_market


@pytest.fixture(scope="module")
def market(tmp_path_factory) -> Path:
    return small_market(tmp_path_factory.mktemp("market") / "market")
