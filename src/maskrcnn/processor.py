"""Facts of the processor at hand, each found by trying it once; every choice that depends on them asks here.

Flags that a virtual machine shows are no proof: an operation counts as present when it ran on a small tensor and gave
what its plain form gives. A precision counts as fast when it was. Which form of an operator is the faster one is known
for each kind of processor from paired measurements (`benchmarks/README.md`), not timed in every process: two runs
of one training must choose alike.
"""

from __future__ import annotations

import os
import platform
import sys
import time
import warnings
from dataclasses import asdict, dataclass
from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F

from maskrcnn.cores import core_limit, usable_cores
from maskrcnn.errors import UserError, did_you_mean

Precision = Literal["fp32", "bf16", "fp16"]
Kind = Literal["avx512_amd", "avx512", "avx2", "other"]

DTYPES: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
IMITATED = 0.4  # below this share of float32's speed a processor has no units for a precision


@cache
def kind() -> Kind:
    """Kind of processor, by the vectors that PyTorch's and oneDNN's kernels really use.

    AMD's with AVX-512 are a kind of their own: MKL does without AVX-512 there, oneDNN does not.
    """
    vectors = torch.backends.cpu.get_cpu_capability()
    if vectors.startswith("AVX512") and _onednn_says(
        "_is_mkldnn_bf16_supported"
    ):  # oneDNN's AVX-512, any of it
        return "avx512_amd" if _vendor() == "AuthenticAMD" else "avx512"
    return "avx2" if vectors.startswith(("AVX2", "AVX512")) else "other"


def has_onednn() -> bool:
    """Return True if PyTorch has oneDNN and nobody has switched it off (`torch.backends.mkldnn.enabled`)."""
    return torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)


def has_mkl() -> bool:
    """Return True if PyTorch has MKL: its builds for x86 have, those for ARM and macOS have not."""
    return torch.backends.mkl.is_available()


def has_sparse_products(dtype: torch.dtype) -> bool:
    """Return True if products with sparse matrices are at hand on the CPU, written into a given tensor: by MKL, on
    x86.
    """
    return has_mkl() and _has_sparse_products(dtype)


@cache
def _has_sparse_products(dtype: torch.dtype) -> bool:
    if dtype not in (torch.float32, torch.float64):
        return False
    ends, index = torch.tensor([0, 1], dtype=torch.int32), torch.tensor([1], dtype=torch.int32)
    table, out = torch.tensor([[1.0], [2.0]], dtype=dtype), torch.zeros(1, 1, dtype=dtype)
    with warnings.catch_warnings():
        # Torch says once in a process that such tensors are in a beta state; not to our users.
        warnings.simplefilter("ignore")
        try:
            bags = torch.sparse_csr_tensor(
                ends, index, torch.ones(1, dtype=dtype), (1, 2), check_invariants=False
            )
            torch.addmm(out, bags, table, beta=0, out=out)
            torch.sparse.sampled_addmm(
                bags, table[1:], table.t(), beta=0.0, out=bags
            )  # 2 * 2, into its values
        except (RuntimeError, NotImplementedError):
            return False
    return out.item() == 2.0 and bags.values().item() == 4.0


@cache
def relative_speed(dtype: torch.dtype, *, training: bool = False) -> float:
    """Speed of a convolution in this precision, a share of float32's; with training, forward and backward. 0: it fails.

    The best of several by turns, in one thread: others that compute meanwhile slow down both, and threads that wait
    for one another would hide the difference.
    """
    best = dict.fromkeys((torch.float32, dtype), float("inf"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for turn in range(5):
            for one in best:
                seconds = _convolution_seconds(one, training)
                if turn:  # in the first oneDNN generates its code
                    best[one] = min(best[one], seconds)
    except (RuntimeError, NotImplementedError):
        return 0.0
    finally:
        torch.set_num_threads(threads)
    return best[torch.float32] / best[dtype]


def _convolution_seconds(dtype: torch.dtype, training: bool) -> float:
    # Outside of inference mode, whoever calls: a gradient may be wanted.
    with (
        torch.inference_mode(False),
        torch.set_grad_enabled(training),
        torch.autocast("cpu", enabled=False),
    ):
        x, weight = (maps(64, side, dtype, images=n) for side, n in ((32, 1), (3, 64)))
        x.requires_grad_(training)
        weight.requires_grad_(training)
        start = time.perf_counter()
        out = F.conv2d(x, weight, padding=1)
        if training:
            out.sum().backward()
        return time.perf_counter() - start


def maps(channels: int, side: int, dtype: torch.dtype, images: int = 1) -> torch.Tensor:
    """Small maps (images, channels, side, side), channels-last, to try an operation on."""
    shape = (images, side, side, channels)
    numbers = torch.arange(images * side * side * channels, dtype=torch.float32)
    return numbers.remainder_(7).sub_(3).view(shape).permute(0, 3, 1, 2).to(dtype) / 8


def fast_precision(device: torch.device | str) -> Precision:
    """Precision to train in where nobody has asked for one: bf16 where it is the faster one by a fifth, else fp32."""
    device = torch.device(device)
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type != "cpu":
        return "fp32"
    return "bf16" if relative_speed(torch.bfloat16, training=True) > 1.2 else "fp32"


def remark(precision: str, device: torch.device | str) -> str | None:
    """One line for a user who asked for a precision that this processor is slow in; None where it is not."""
    if precision == "fp32" or torch.device(device).type != "cpu":
        return None
    speed = relative_speed(DTYPES[precision])
    if speed >= 0.95:
        return None
    how = "imitates" if speed < IMITATED else "is slower in"
    return f"this processor {how} {precision}: {speed:.2f} of fp32's speed. fp32 is the faster choice."


def parse_device(name: str | torch.device) -> torch.device:
    """Device of a name that PyTorch knows, whether or not it is there.

    Raises:
        UserError: no such kind of device.
    """
    try:
        return torch.device(name)
    except (RuntimeError, TypeError):
        known = ("cpu", "cuda", "mps", "xpu")
        near = did_you_mean(str(name).split(":")[0], known)
        raise UserError(
            f"device: expected {', '.join(known)} or cuda:1, got {name!r}. {near}".rstrip()
        ) from None


def find_device(name: str | torch.device | None) -> torch.device:
    """Device of a name that PyTorch knows, such as cpu, cuda:1, mps, xpu; of None the CUDA GPU, else the CPU.

    Raises:
        UserError: no such kind of device, or none on this machine.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = parse_device(name)
    try:
        if not bool((torch.zeros(1, device=device) == 0).item()):
            raise RuntimeError
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as e:
        why = f" ({_first_sentence(e)})" if device.type == "cuda" and str(e) else ""
        count = f"; there are {torch.cuda.device_count()}" if device.type == "cuda" else ""
        raise UserError(f"device: no {str(device)!r} on this machine{count}{why}. Use cpu.") from None
    return device


def _first_sentence(error: BaseException) -> str:
    """First sentence of what PyTorch says: no driver, too old a driver, or a build without CUDA."""
    return str(error).splitlines()[0].split(". ")[0].rstrip(".")[:200]


@dataclass(frozen=True, kw_only=True)
class Description:
    """Facts of the machine that figures and error reports name."""

    processor: str
    kind: Kind
    cores: int
    threads: int
    vectors: str
    onednn: str
    mkl: bool
    bf16: str
    fp16: str
    torch: str
    torchvision: str
    python: str
    system: str
    accelerators: tuple[str, ...]

    def to_dict(self) -> dict[str, object]:
        return asdict(self)

    def line(self) -> str:
        """One line: `processor, cores; vectors, oneDNN, MKL, bf16, fp16; versions; accelerators`."""
        libraries = [f"oneDNN {self.onednn}", "MKL" if self.mkl else "no MKL"]
        parts = (
            f"{self.processor}, {self.threads} of {self.cores} cores",
            ", ".join([self.vectors, *libraries, f"bf16 {self.bf16}", f"fp16 {self.fp16}"]),
            f"torch {self.torch}, torchvision {self.torchvision}, Python {self.python} on {self.system}",
            ", ".join(self.accelerators) or "no accelerator",
        )
        return "; ".join(parts)


def use_cores(num_threads: int | None = None) -> None:
    """Let PyTorch compute with so many threads; by default with as many as it takes by itself, but no more than a
    container's share of time is good for.
    """
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    elif "OMP_NUM_THREADS" not in os.environ and (limit := core_limit()):
        torch.set_num_threads(min(limit, torch.get_num_threads()))


def describe() -> Description:
    """Facts of this machine, for `maskrcnn bench`, result files and reports of errors."""
    import torchvision

    return Description(
        processor=_name(),
        kind=kind(),
        cores=usable_cores(),
        threads=torch.get_num_threads(),
        vectors=torch.backends.cpu.get_cpu_capability(),
        onednn=_onednn(),
        mkl=has_mkl(),
        bf16=_how_fast(torch.bfloat16),
        fp16=_how_fast(torch.float16),
        torch=torch.__version__,
        torchvision=torchvision.__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        accelerators=_accelerators(),
    )


def _how_fast(dtype: torch.dtype) -> str:
    speed = relative_speed(dtype)
    if speed == 0:
        return "not at hand"
    return f"{'imitated' if speed < IMITATED else 'native'}, {speed:.2f} of fp32's speed"


def _accelerators() -> tuple[str, ...]:
    if torch.cuda.is_available():
        return tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    other = torch.accelerator.current_accelerator(check_available=True)
    return () if other is None else (other.type,)


def _onednn() -> str:
    """Vectors that oneDNN's kernels use, as far as it tells: its own limit (`ONEDNN_MAX_CPU_ISA`) counts."""
    if not has_onednn():
        return "off"
    return "AVX512" if _onednn_says("_is_mkldnn_bf16_supported") else "below AVX512"


@cache
def _cpuinfo() -> dict[str, str]:
    """First processor's entries of Linux's /proc/cpuinfo; empty elsewhere."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            pairs = [line.split(":", 1) for line in file.read().split("\n\n")[0].splitlines() if ":" in line]
    except OSError:
        return {}
    return {name.strip(): value.strip() for name, value in pairs}


def _vendor() -> str:
    """Processor's maker as it calls itself: GenuineIntel, AuthenticAMD; elsewhere than on Linux what Python knows."""
    text = platform.processor()
    return _cpuinfo().get("vendor_id") or next((v for v in ("AuthenticAMD", "GenuineIntel") if v in text), "")


def _name() -> str:
    return _cpuinfo().get("model name") or platform.processor() or platform.machine() or sys.platform


def _onednn_says(question: str) -> bool:
    try:
        return bool(getattr(torch.ops.mkldnn, question)())
    except (RuntimeError, AttributeError):
        return False


@cache
def let_forks_compute() -> None:
    """Give processes that are forked from this one a single CPU thread.

    OpenMP's threads do not survive a fork: once several have worked, a forked process that asks for several waits
    for ever. `DataLoader` does this for its workers; a pool over `predict` needs it as well.
    """
    if hasattr(os, "register_at_fork"):  # Windows has no fork
        os.register_at_fork(after_in_child=_use_one_thread)


def _use_one_thread() -> None:
    torch.set_num_threads(1)
