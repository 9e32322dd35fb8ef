"""A worker without an engine: an ASGI app that speaks vLLM's protocol, and fails on demand.

    python -m server.worker.fake --config fleet.toml --worker base --port 8100

For tests, for load tests of the gateway, and for laptops without vLLM. Its answers are
deterministic and senseless, but have the right shape: it passes every golden probe, label scores
are a distribution, JSON is valid under its schema, a choice is one of the choices. Each model
answers differently.

Faults are set in `FakeWorker.faults` or, while it runs, with `POST /fake/faults` (the JSON of
`Faults`; `{}` heals it). No header of a request sets any: the gateway hands none on.
"""

from server.worker.fake.app import FakeWorker, Golden
from server.worker.fake.exchange import Faults

__all__ = ["FakeWorker", "Faults", "Golden"]
