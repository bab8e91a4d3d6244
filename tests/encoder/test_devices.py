"""What is computed on: asked for, or chosen."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import hoarfrost.features.devices
import hoarfrost.features.encoder.precision
import hoarfrost.features.processors
from hoarfrost.features.devices import (
    choose_batch_size,
    choose_device,
    compute_on_one_thread,
    enough_memory,
    host_tensor,
    threads_on_usable_cpus,
)
from hoarfrost.features.encoder.precision import REPEATS, choose_precision
from hoarfrost.features.errors import HoarfrostError
from hoarfrost.features.processors import usable_cpus
from tests.support.commands import NumberOfThreads, RunPython

# -- GPUs that cannot be used --------------------------------------------------------------------------------------------


@pytest.fixture
def broken_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Pretend to have a GPU that torch finds, and that runs nothing."""

    def fail(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nCompile with ...")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", fail)
    hoarfrost.features.devices.gpu_failure.cache_clear()
    hoarfrost.features.devices._warn_of_gpu.cache_clear()
    yield
    hoarfrost.features.devices.gpu_failure.cache_clear()


@pytest.mark.usefixtures("broken_gpu")
def test_auto_continues_on_the_cpu_with_one_warning_where_the_gpu_runs_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert choose_device("auto") == "cpu"
    assert (
        "The GPU cannot be used (CUDA error: no kernel image is available for execution on the device)" in caplog.text
    )
    assert "Compile with" not in caplog.text


@pytest.mark.usefixtures("broken_gpu")
def test_a_gpu_that_was_asked_for_and_runs_nothing_is_an_error() -> None:
    with pytest.raises(HoarfrostError, match=r"--device cuda: the GPU cannot be used .* Pass --device cpu or auto"):
        choose_device("cuda")


def test_too_little_memory_is_an_error_with_the_way_out_and_others_pass() -> None:
    with pytest.raises(HoarfrostError, match="cuda: not enough memory for the heads. .* pass --device cpu"):
        with enough_memory("cuda", "the heads"):
            raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(RuntimeError, match="shapes"), enough_memory("cuda", "the heads"):
        raise RuntimeError("shapes")


@pytest.mark.parametrize("chosen", ["tf32", "ieee"])
def test_float32_is_full_whatever_the_program_around_chose_and_its_choices_stay(
    run_python: RunPython, chosen: str
) -> None:
    # In a process of its own: once the newer interface was used, torch's own exporters may raise errors.
    code = f"""
import torch
from hoarfrost.features.devices import full_float32
from hoarfrost.features.encoder.backbone import Backbone, load_weights
torch.backends.fp32_precision, torch.backends.cudnn.benchmark = {chosen!r}, True
with full_float32(torch.device("cuda")):
    print(torch.backends.cudnn.conv.fp32_precision, torch.backends.cudnn.benchmark)
print(torch.backends.cudnn.conv.fp32_precision, torch.backends.cudnn.benchmark)
torch.backends.fp32_precision = "ieee"
print(torch.backends.cudnn.conv.fp32_precision)
print(*Backbone(load_weights("random:0")).embed(torch.zeros((1, 3, 224, 224), dtype=torch.uint8)).shape)
"""
    output = run_python("-c", code)
    assert output.stdout.splitlines() == ["ieee True", f"{chosen} True", "ieee", "1 512"], output.stderr


def test_programs_that_use_torchs_older_interface_read_their_own_setting_again(run_python: RunPython) -> None:
    # In a process of its own: once the newer interface was used, the older one may raise errors.
    code = """
import torch
from hoarfrost.features.devices import full_float32
for chosen in (True, False):
    torch.backends.cudnn.allow_tf32 = chosen
    with full_float32(torch.device("cuda")):
        pass
    print(torch.backends.cudnn.allow_tf32)
"""
    assert run_python("-c", code).stdout.split() == ["True", "False"]


# -- device and precision -----------------------------------------------------------------------------------------------


def pretend_processor(monkeypatch: pytest.MonkeyPatch, folder: Path, flags: str) -> None:
    """Make Linux list these features for each of two CPUs."""
    (folder / "cpuinfo").write_text(
        f"processor\t: 0\nflags\t\t: fpu {flags}\n\nprocessor\t: 1\nflags\t\t: fpu {flags}\n"
    )
    monkeypatch.setattr(hoarfrost.features.processors, "CPUINFO", folder / "cpuinfo")


def pretend_speed(monkeypatch: pytest.MonkeyPatch, *, float32_s: float, bfloat16_s: float) -> None:
    monkeypatch.setattr(hoarfrost.features.encoder.precision, "_layer_seconds", lambda: (float32_s, bfloat16_s))


@pytest.fixture
def nothing_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> tuple[float, float]:
        raise AssertionError("layers were timed, although nothing depends on it")

    monkeypatch.setattr(hoarfrost.features.encoder.precision, "_layer_seconds", refuse)


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(HoarfrostError, match=rf"--device {device}: torch finds no .* Pass --device cpu or auto"):
        choose_device(device)
    assert choose_device("auto") == "cpu"


def test_auto_takes_the_gpu_that_is_there_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(hoarfrost.features.devices, "gpu_failure", lambda: "")
    assert choose_device("auto") == "cuda"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert choose_precision("auto", "cuda") == "bfloat16"
    assert choose_precision("float32", "cuda") == "float32"


@pytest.mark.usefixtures("nothing_timed")
def test_a_cpu_with_amx_computes_in_bfloat16(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pretend_processor(monkeypatch, tmp_path, "avx512f avx512_bf16 amx_bf16 amx_tile amx_int8")
    assert choose_precision("auto", "cpu") == "bfloat16"


@pytest.mark.parametrize(
    ("bfloat16_s", "precision"), [(0.5, "bfloat16"), (0.9, "bfloat16"), (0.92, "float32"), (1.5, "float32")]
)
def test_a_cpu_with_avx512_bf16_alone_computes_in_what_was_measured_to_be_faster(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bfloat16_s: float, precision: str
) -> None:
    pretend_processor(monkeypatch, tmp_path, "avx2 avx512f avx512_bf16")
    pretend_speed(monkeypatch, float32_s=1.0, bfloat16_s=bfloat16_s)
    assert choose_precision("auto", "cpu") == precision


@pytest.mark.usefixtures("nothing_timed")
@pytest.mark.parametrize("flags", ["avx2 fma", "avx512f avx512_vnni", "amx_bf16_of_tomorrow xavx512_bf16", ""])
def test_other_cpus_compute_in_float32(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: str) -> None:
    pretend_processor(monkeypatch, tmp_path, flags)
    assert choose_precision("auto", "cpu") == "float32"


@pytest.mark.usefixtures("nothing_timed")
def test_a_machine_that_does_not_list_its_cpus_features_computes_in_float32(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(hoarfrost.features.processors, "CPUINFO", tmp_path / "missing")
    assert choose_precision("auto", "cpu") == "float32"


@pytest.mark.usefixtures("nothing_timed")
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_a_precision_that_was_asked_for_is_used_on_any_cpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, precision: str
) -> None:
    pretend_processor(monkeypatch, tmp_path, "amx_bf16")
    assert choose_precision(precision, "cpu") == precision


def test_a_gpu_that_only_emulates_bfloat16_computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *, including_emulation=True: including_emulation)
    assert choose_precision("auto", "cuda") == "float32"
    assert choose_precision("bfloat16", "cuda") == "bfloat16"


def test_both_precisions_are_timed_by_turns_on_the_layers_that_run_and_the_least_of_each_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    timed = []
    seconds = iter([5.0, 4.0, 2.0, 3.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0])

    def pretend(layers: list[torch.nn.Module], inputs: list[torch.Tensor]) -> float:
        timed.append([inputs[0].dtype, *(type(layer).__name__ for layer in layers)])
        return next(seconds)

    monkeypatch.setattr(hoarfrost.features.encoder.precision, "_seconds_of", pretend)
    assert hoarfrost.features.encoder.precision._layer_seconds() == (2.0, 3.0)
    float32, bfloat16 = [torch.float32, "Conv2d", "WinogradConv2d"], [torch.bfloat16, "Conv2d", "Conv2d"]
    assert timed == [float32, bfloat16] * REPEATS


def test_layers_can_be_timed_in_both_precisions() -> None:
    assert all(0 < seconds < 60 for seconds in hoarfrost.features.encoder.precision._layer_seconds())


# -- batches ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "device", "n_images"),
    [(None, "cpu", 32), (7, "cpu", 7), (780, "cpu", 64), (None, "cuda", 256), (780, "cuda", 780), (780, "mps", 780)],
)
def test_a_cpu_takes_no_more_at_once_than_it_embeds_in_seconds(asked: int | None, device: str, n_images: int) -> None:
    assert choose_batch_size(asked, device) == n_images


@pytest.mark.parametrize(
    "message", ["CUDA error: out of memory", "cuBLAS error: CUBLAS_STATUS_ALLOC_FAILED when calling"]
)
def test_memory_that_cannot_be_pinned_is_used_unpinned_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, message: str
) -> None:
    empty = torch.empty

    def limited(*sizes: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        if pin_memory:
            raise RuntimeError(message)
        return empty(*sizes, **options)

    monkeypatch.setattr(torch, "empty", limited)
    hoarfrost.features.devices.warn_unpinned.cache_clear()
    for _ in range(2):
        assert host_tensor((2, 3), torch.uint8, pinned=True).shape == (2, 3)
    assert len(caplog.messages) == 1
    assert "No more memory can be pinned" in caplog.messages[0]


def test_another_error_of_pinning_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch, "empty", broken)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        host_tensor((1,), torch.uint8, pinned=True)


# -- threads ------------------------------------------------------------------------------------------------------------


def test_a_threads_single_core_is_its_own_alone(n_threads: NumberOfThreads) -> None:
    n_threads(2)
    counts = []

    def work() -> None:
        compute_on_one_thread(2)
        torch.ones(100, 100) @ torch.ones(100, 100)
        counts.append(torch.get_num_threads())

    for target in (work, lambda: counts.append(torch.get_num_threads())):
        thread = threading.Thread(target=target)
        thread.start()
        thread.join()
    assert (counts, torch.get_num_threads()) == ([1, 2], 2)


def test_a_thread_has_its_single_core_where_no_other_thread_can_be_started(
    n_threads: NumberOfThreads, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_thread(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    n_threads(2)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result()  # the thread runs
        with monkeypatch.context() as patches:
            patches.setattr(threading.Thread, "start", no_thread)
            pool.submit(compute_on_one_thread, 2).result()
        assert pool.submit(torch.get_num_threads).result() == 1


def test_threads_are_no_more_than_the_cpus_and_as_before_afterwards(
    n_threads: NumberOfThreads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hoarfrost.features.devices, "usable_cpus", lambda: 2)
    for before, inside in ((3, 2), (1, 1)):
        n_threads(before)
        with threads_on_usable_cpus() as count:
            assert count == torch.get_num_threads() == inside
        assert torch.get_num_threads() == before


# -- processors ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def cgroups(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return a folder in place of /sys/fs/cgroup, for a process that may use three CPUs."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 3, 5}, raising=False)
    monkeypatch.setattr(hoarfrost.features.processors, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(hoarfrost.features.processors, "OWN_CGROUP", tmp_path / "own")
    return tmp_path / "cgroup"


def join(cgroups: Path, lines: str) -> None:
    """Put the process into cgroups, as /proc/self/cgroup lists them."""
    (cgroups.parent / "own").write_text(lines, encoding="utf-8")


def limit(folder: Path, **files: str) -> None:
    """Write a cgroup's files; "cpu_max" means `cpu.max`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("cpu_", "cpu.", 1)).write_text(content, encoding="utf-8")


def test_threads_are_counted_by_the_cpus_that_the_process_may_use(cgroups: Path) -> None:
    assert not cgroups.exists()
    assert usable_cpus() == 3


@pytest.mark.parametrize(
    ("quota", "n_cpus"),
    [
        ("150000 100000", 2),
        ("200000 100000\n", 2),
        ("50000 100000", 1),
        ("1000 100000", 1),
        ("25000 10000", 3),
        ("300000 100000", 3),
        ("6400000 100000", 3),
        ("max 100000", 3),
    ],
)
def test_a_quota_of_version_2_bounds_the_cpus(cgroups: Path, quota: str, n_cpus: int) -> None:
    join(cgroups, "0::/app\n")
    limit(cgroups / "app", cpu_max=quota)
    assert usable_cpus() == n_cpus


@pytest.mark.parametrize(
    ("parent", "own", "n_cpus"), [("150000 100000", "max 100000", 2), ("200000 100000", "100000 100000", 1)]
)
def test_the_least_quota_on_the_way_up_counts(cgroups: Path, parent: str, own: str, n_cpus: int) -> None:
    join(cgroups, "0::/users/me/app\n")
    limit(cgroups / "users", cpu_max=parent)
    limit(cgroups / "users" / "me" / "app", cpu_max=own)
    assert usable_cpus() == n_cpus


def test_a_container_sees_its_quota_at_the_root(cgroups: Path) -> None:
    limit(cgroups, cpu_max="150000 100000")
    for path in ("/", "/docker/0123abcd"):  # with a cgroup namespace of its own, and with its host's
        join(cgroups, f"0::{path}\n")
        assert usable_cpus() == 2


def test_another_groups_quota_does_not_count(cgroups: Path) -> None:
    join(cgroups, "0::/app\n")
    limit(cgroups / "application", cpu_max="100000 100000")
    limit(cgroups / "app" / "child", cpu_max="100000 100000")
    limit(cgroups.parent, cpu_max="100000 100000")  # above the mount there are no cgroups
    assert usable_cpus() == 3


@pytest.mark.parametrize(("quota", "n_cpus"), [("150000\n", 2), ("50000\n", 1), ("900000\n", 3), ("-1\n", 3)])
@pytest.mark.parametrize("controllers", ["cpu", "cpu,cpuacct"])
def test_a_quota_of_version_1_bounds_the_cpus(cgroups: Path, controllers: str, quota: str, n_cpus: int) -> None:
    join(cgroups, f"5:memory:/docker/other\n4:{controllers}:/docker/abc\n3:cpuset:/\n1:name=systemd:/\n0::/\n")
    limit(cgroups / "cpu" / "docker" / "abc", cpu_cfs_quota_us=quota, cpu_cfs_period_us="100000\n")
    assert usable_cpus() == n_cpus


def test_a_quota_of_version_1_at_a_parent_counts(cgroups: Path) -> None:
    join(cgroups, "4:cpu,cpuacct:/docker/abc\n")
    limit(cgroups / "cpu" / "docker" / "abc", cpu_cfs_quota_us="-1", cpu_cfs_period_us="100000")
    limit(cgroups / "cpu" / "docker", cpu_cfs_quota_us="150000", cpu_cfs_period_us="100000")
    assert usable_cpus() == 2


def test_a_path_with_a_colon_is_read_whole(cgroups: Path) -> None:
    join(cgroups, "0::/kubepods:besteffort/pod:1\n")
    limit(cgroups / "kubepods:besteffort" / "pod:1", cpu_max="150000 100000")
    assert usable_cpus() == 2


@pytest.mark.parametrize("content", ["", "\n", "x", "100000", "100000 x", "1 2 3", "max", "1e5 100000", "½ 1"])
def test_a_quota_of_version_2_that_cannot_be_read_is_none(cgroups: Path, content: str) -> None:
    join(cgroups, "0::/app\n")
    limit(cgroups / "app", cpu_max=content)
    assert usable_cpus() == 3


@pytest.mark.parametrize(("quota", "period"), [("", "100000"), ("max", "100000"), ("100000", ""), ("100000", "½")])
def test_a_quota_of_version_1_that_cannot_be_read_is_none(cgroups: Path, quota: str, period: str) -> None:
    join(cgroups, "4:cpu:/app\n")
    limit(cgroups / "cpu" / "app", cpu_cfs_quota_us=quota, cpu_cfs_period_us=period)
    assert usable_cpus() == 3


def test_a_quota_of_version_1_without_its_period_is_none(cgroups: Path) -> None:
    join(cgroups, "4:cpu:/app\n")
    limit(cgroups / "cpu" / "app", cpu_cfs_quota_us="100000")
    assert usable_cpus() == 3


def test_a_quota_that_is_a_folder_is_none(cgroups: Path) -> None:
    join(cgroups, "0::/app\n")
    (cgroups / "app" / "cpu.max").mkdir(parents=True)
    assert usable_cpus() == 3


def test_a_process_in_no_cgroup_has_no_quota(cgroups: Path) -> None:
    limit(cgroups, cpu_max="100000 100000")
    join(cgroups, "")
    assert usable_cpus() == 3


@pytest.mark.parametrize("quota", ["100000 0", "0 0"])
def test_a_quota_of_no_period_is_none(cgroups: Path, quota: str) -> None:
    join(cgroups, "0::/app\n")
    limit(cgroups / "app", cpu_max=quota)
    assert usable_cpus() == 3


@pytest.mark.parametrize("lines", [b"\n", b"garbage\n", b"0:\n", b"0::/caf\xe9\n"], ids=repr)
def test_a_list_of_cgroups_that_cannot_be_read_limits_nothing(cgroups: Path, lines: bytes) -> None:
    (cgroups.parent / "own").write_bytes(lines)
    assert usable_cpus() == 3
