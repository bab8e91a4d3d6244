"""Ray on loopback for tests, in processes of their own: what Ray warns of is not the tests' business.

`python -m tests.clustered nodes CPUS` starts a head without room for workers and two hosts of so many CPUs, says the
address, and then does as it is told line by line: "add" a host, "remove" the latest. At the end of its input all ends.

`python -m tests.clustered SECONDS_A_BATCH extract …` is `hoarfrost` whose workers have the backbone of `tests.standin`,
slowed down, and commit each batch. At images of 13 x 13 pixels a decoder ends its process.
"""

import os
import pickle
import sys
from typing import Any

# Before Ray is imported: it would listen on the network otherwise, and report to its makers.
os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}


def serve_nodes(n_cpus: int) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=n_cpus) for _ in range(2)]
    print(cluster.address, flush=True)
    for line in sys.stdin:
        if line.strip() == "add":
            nodes.append(cluster.add_node(num_cpus=n_cpus))
        else:
            cluster.remove_node(nodes.pop(), allow_graceful=False)
        print("done", flush=True)
    cluster.shutdown()


def stand_in(seconds_a_batch: float, *, crashes: bool = True) -> None:
    """Let this process embed by next to nothing."""
    import features.apart
    import features.cache.parts
    import features.images
    from tests import crashing
    from tests.standin import StandIn, stand_in_module

    StandIn.seconds_a_batch = seconds_a_batch
    sys.modules["features.backbone"] = stand_in_module()
    features.cache.parts.COMMIT_SECONDS = 0.0
    if crashes:
        features.images._pixels = crashing.crash_at_13  # type: ignore[assignment]
        features.apart.COMMAND = (sys.executable, "-m", "tests.crashing")


def main(seconds_a_batch: float) -> None:
    from features.cluster import actors, driver
    from features.cluster.worker import Worker
    from pipeline.cli import main as hoarfrost

    class StandInWorker(Worker):  # defined here, so that Ray sends it as it is
        def __init__(self, name: str, n_threads: int) -> None:
            from tests.clustered import stand_in

            stand_in(seconds_a_batch)
            super().__init__(name, n_threads)

    stand_in(seconds_a_batch)
    actors.Worker = StandInWorker  # type: ignore[misc]
    driver.PIECE_SECONDS = 0.5  # several pieces even of few images
    driver.FIRST_BATCHES = 1
    result_of, n_bytes = actors.result_of, 0

    def counted(reference: object) -> Any:
        nonlocal n_bytes
        answer = result_of(reference)
        n_bytes += len(pickle.dumps(answer))
        return answer

    actors.result_of = counted
    try:
        hoarfrost(prog_name="hoarfrost")
    finally:
        print(f"{n_bytes} bytes came to the driver", file=sys.stderr)


if __name__ == "__main__":
    if sys.argv[1] == "nodes":
        serve_nodes(int(sys.argv[2]))
    else:
        main(float(sys.argv.pop(1)))
