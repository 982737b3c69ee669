"""Which requests go over the exchange, and what becomes of them when their worker dies."""

import asyncio

from gateway_fakes import FakeWorker
from gateway_house import House, StartHouse, until, until_ready

from services.gateway.worker_client import WorkerState


async def embed(house: House, text: str = "a") -> tuple[int, str]:
    response = await house.http.post("/v1/embeddings", json={"input": text})
    return response.status_code, response.json().get("error", {}).get("code", "")


async def test_one_answer_is_exchanged_and_a_large_request_goes_alone(house: House) -> None:
    assert await embed(house) == (200, "")
    assert (len(house.encoder.requests), house.encoder.num_exchanged) == (1, 1)
    assert await embed(house, "a" * 100_000) == (200, "")
    assert (len(house.encoder.requests), house.encoder.num_exchanged) == (2, 1)
    assert (await house.http.post("/v1/tokenize", json={"prompt": "a b"})).status_code == 200
    assert house.decoder.num_exchanged == 1
    chat = {"messages": [{"role": "user", "content": "hello"}]}
    assert (await house.http.post("/v1/chat/completions", json=chat)).status_code == 200
    assert (len(house.decoder.requests), house.decoder.num_exchanged) == (2, 1)


async def test_a_worker_without_an_exchange_is_asked_without_one(start_house: StartHouse) -> None:
    old = FakeWorker("encoder", has_exchange=False)
    await old.start()
    house = await start_house(encoder_targets=old.target)
    await until_ready(house.http)
    assert await asyncio.gather(*(embed(house) for _ in range(10))) == [(200, "")] * 10
    assert (len(old.requests), old.num_exchanged, old.num_first_answers) == (10, 0, 1)
    # One that has it comes up in its place.
    await old.stop()
    client = house.gateway.router.workers[0]
    await until(lambda: client.state is WorkerState.LOST)
    old.has_exchange = True
    await old.start()
    await until(lambda: client.state is WorkerState.READY)
    assert await embed(house) == (200, "")
    assert (len(old.requests), old.num_exchanged) == (11, 1)
    await old.stop()


async def test_requests_that_were_exchanged_go_to_another_worker_when_theirs_stops(start_house: StartHouse) -> None:
    workers = [FakeWorker("encoder"), FakeWorker("encoder")]
    for worker in workers:
        worker.answer_seconds = 0.5
        await worker.start()
    house = await start_house(encoder_targets=", ".join(worker.target for worker in workers))
    await until(lambda: all(each.state is WorkerState.READY for each in house.gateway.router.workers))
    asking = [asyncio.create_task(embed(house)) for _ in range(20)]
    await until(lambda: [len(worker.requests) for worker in workers] == [10, 10])
    await workers[0].stop()
    assert await asyncio.gather(*asking) == [(200, "")] * 20
    assert len(workers[1].requests) == 20
    await house.until_metric(10, "janus_retries_total", worker_kind="encoder", cause="worker_lost")
    await house.until_metric(20, "janus_requests_total", task="embeddings", code="ok")
    await workers[1].stop()
