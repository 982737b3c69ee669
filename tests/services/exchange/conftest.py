"""A worker behind an exchange, over a real connection."""

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from exchange_house import House, channel_to

from services.exchange.client import Exchange


@pytest.fixture
async def house() -> AsyncIterator[House]:
    house = House()
    await house.start()
    async with channel_to(house.port) as house.channel:
        house.exchange = Exchange(house.channel)
        yield house
        await house.exchange.close()
    await house.server.drain(0)
