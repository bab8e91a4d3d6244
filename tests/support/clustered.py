"""Ray on loopback for tests and benchmarks, in processes of their own: what Ray warns of is not the tests' business.

`python -m tests.support.clustered nodes CPUS HOSTS` starts a head without room for workers and hosts of so many
CPUs, prints the address, and then obeys line by line: "add" a host, "remove" the latest. It ends with its input.

`python -m tests.support.clustered SECONDS_A_BATCH extract …` is `hoarfrost` whose workers have the stand-in backbone,
slowed down; with `SECONDS_A_BATCH/often` they have small pieces and commit each batch. At images of 13 x 13 pixels a
decoder ends its process.
"""

import atexit
import os
import pickle
import sys
import time
from typing import Any

# Before Ray is imported: it would listen on the network otherwise, and report to its makers.
os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}


def serve_nodes(n_cpus: int, n_hosts: int) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=n_cpus) for _ in range(n_hosts)]
    print(cluster.address, flush=True)
    for line in sys.stdin:
        if line.strip() == "add":
            nodes.append(cluster.add_node(num_cpus=n_cpus))
        else:
            cluster.remove_node(nodes.pop(), allow_graceful=False)
        print("done", flush=True)
    cluster.shutdown()


def stand_in(seconds_a_batch: float, is_often: bool) -> None:
    """Let this process embed by next to nothing."""
    import hoarfrost.features.cache.parts
    import hoarfrost.features.decoding.images
    import hoarfrost.features.decoding.isolated
    from tests.support import crashing
    from tests.support.standin import StandIn, stand_in_module

    StandIn.seconds_a_batch = seconds_a_batch
    sys.modules["hoarfrost.features.encoder.backbone"] = stand_in_module()
    if is_often:
        hoarfrost.features.cache.parts.COMMIT_SECONDS = 0.0
    hoarfrost.features.decoding.images._pixels = crashing.crash_at_13  # type: ignore[assignment]
    hoarfrost.features.decoding.isolated.COMMAND = (sys.executable, "-m", "tests.support.crashing")


class Watch:
    """Counts what comes to the driver, and when."""

    def __init__(self) -> None:
        self.n_bytes = 0
        self.seen: list[tuple[float, int, int]] = []

    def start(self) -> None:
        from hoarfrost.features.extraction.cluster import actors
        from hoarfrost.features.extraction.cluster.driver import Driver

        result_of, take = actors.result_of, Driver._take

        def counted(reference: object) -> Any:
            answer = result_of(reference)
            self.n_bytes += len(pickle.dumps(answer))
            return answer

        def timed(driver: Any, *arguments: Any) -> None:
            take(driver, *arguments)
            self.seen.append((time.monotonic(), driver._n_done, sum(bool(each.prepared) for each in driver._members)))

        actors.result_of, Driver._take = counted, timed  # type: ignore[method-assign]

    def say(self) -> None:
        """Say how fast it was once all workers were ready, and how much came."""
        if self.seen:
            first = next(i for i, (_, _, n) in enumerate(self.seen) if n == max(n for _, _, n in self.seen))
            (began, before, _), (ended, after, _) = self.seen[first], self.seen[-1]
            print(f"{(after - before) / max(ended - began, 1e-6):.3f} images/s steadily", file=sys.stderr)
        print(f"{self.n_bytes} bytes came to the driver", file=sys.stderr)


def main(seconds_a_batch: float, is_often: bool) -> None:
    from hoarfrost.cli import main as hoarfrost
    from hoarfrost.features.extraction.cluster import actors, driver
    from hoarfrost.features.extraction.cluster.worker import Worker

    class StandInWorker(Worker):  # defined here, so that Ray sends it as it is
        def __init__(self, name: str, n_threads: int) -> None:
            from tests.support.clustered import stand_in

            stand_in(seconds_a_batch, is_often)
            super().__init__(name, n_threads)

    stand_in(seconds_a_batch, is_often)
    actors.Worker = StandInWorker  # type: ignore[misc]
    if is_often:
        driver.PIECE_SECONDS, driver.FIRST_BATCHES, driver.LOOK_SECONDS = 0.5, 1, 1.0
    watch = Watch()
    watch.start()
    try:
        hoarfrost(prog_name="hoarfrost")
    finally:
        watch.say()


def in_fork(stdout: str, stderr: str, pace: str, *arguments: str) -> None:
    """Run the command in a fork of a process that has imported Ray and torch, and end it."""
    for descriptor, path in ((1, stdout), (2, stderr)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    sys.argv[1:] = arguments
    status = 0
    try:
        main(*pace_of(pace))
    except SystemExit as ended:
        status = int(ended.code or 0)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def pace_of(text: str) -> tuple[float, bool]:
    """Read `SECONDS_A_BATCH` or `SECONDS_A_BATCH/often`."""
    seconds, _, often = text.partition("/")
    return float(seconds), often == "often"


if __name__ == "__main__":
    if sys.argv[1] == "nodes":
        serve_nodes(int(sys.argv[2]), int(sys.argv[3]))
    else:
        main(*pace_of(sys.argv.pop(1)))
