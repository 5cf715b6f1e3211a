"""Real boards as a default population of edge devices: peak speed, memory, and where each number comes from."""

from dataclasses import dataclass

import pandas as pd

from psl.errors import check_choice, check_count, check_number
from psl.records import Record

GIB = 2**30

#: Share of its peak that a board is assumed to reach when it trains [R]. Nobody publishes this number for every board;
#: measure your own devices with `psl.measure` and give them `profiles` where it matters.
EFFICIENCY = 0.3


@dataclass(frozen=True, repr=False, eq=False)
class Board(Record):
    """A board by its vendor's figures: peak FP32 speed is cores × clock × FLOP per cycle and core.

    Args:
        name: short name.
        processor: what computes.
        cores: CPU cores, or CUDA cores of the GPU.
        clock: Hz, the vendor's highest for all cores at once; of processors whose clock depends on the load, such as
            laptops', the base clock.
        flop_per_cycle: FP32 FLOP per cycle and core; a fused multiply-add is 2.
        memory: bytes of main memory; on the boards with a GPU it is shared with the CPU.
        source: document of cores, clock and memory.
        url: its address.
        cycle_source: document of `flop_per_cycle`.

    Raises:
        ScenarioError: a number is out of range.
    """

    name: str
    processor: str
    cores: int
    clock: float
    flop_per_cycle: int
    memory: float
    source: str
    url: str
    cycle_source: str

    def __post_init__(self) -> None:
        self._set(
            cores=check_count("Board.cores", self.cores),
            flop_per_cycle=check_count("Board.flop_per_cycle", self.flop_per_cycle),
            clock=check_number("Board.clock", self.clock, minimum=0, strict=True),
            memory=check_number("Board.memory", self.memory, minimum=0, strict=True),
        )

    @property
    def peak_flops(self) -> float:
        """Peak FP32 speed, FLOP/s."""
        return self.cores * self.clock * self.flop_per_cycle


_JETSON = "NVIDIA, Jetson Modules, Support, Ecosystem, and Lineup (technical specifications)"
_JETSON_URL = "https://developer.nvidia.com/embedded/jetson-modules"
_CUDA = "NVIDIA, CUDA C++ Programming Guide: one FP32 fused multiply-add per CUDA core and cycle"
_A72 = "Arm, Cortex-A72 Software Optimization Guide (UAN 0016): a 128-bit FP32 multiply-add per cycle"
_A76 = "Arm, Cortex-A76 Software Optimization Guide: two 128-bit FP32 multiply-adds per cycle"

#: The default population of `EdgeCluster.sample`.
BOARDS = (
    Board(
        "raspberry-pi-4", "4 × Cortex-A72 (BCM2711)", 4, 1.8e9, 8, 8 * GIB,
        "Raspberry Pi 4 Model B, specifications", "https://www.raspberrypi.com/products/raspberry-pi-4-model-b/specifications/",
        _A72,
    ),
    Board(
        "raspberry-pi-5", "4 × Cortex-A76 (BCM2712)", 4, 2.4e9, 16, 8 * GIB,
        "Raspberry Pi 5, product brief", "https://datasheets.raspberrypi.com/rpi5/raspberry-pi-5-product-brief.pdf",
        _A76,
    ),
    Board("jetson-nano", "128-core Maxwell GPU", 128, 0.921e9, 2, 4 * GIB, _JETSON, _JETSON_URL, _CUDA),
    Board("jetson-tx2", "256-core Pascal GPU", 256, 1.3e9, 2, 8 * GIB, _JETSON, _JETSON_URL, _CUDA),
    Board("jetson-xavier-nx", "384-core Volta GPU", 384, 1.1e9, 2, 8 * GIB, _JETSON, _JETSON_URL, _CUDA),
    Board("jetson-agx-xavier", "512-core Volta GPU", 512, 1.377e9, 2, 32 * GIB, _JETSON, _JETSON_URL, _CUDA),
    Board("jetson-orin-nano", "1024-core Ampere GPU", 1024, 0.625e9, 2, 8 * GIB, _JETSON, _JETSON_URL, _CUDA),
    Board(
        "laptop", "Intel Core i7-1165G7, 4 cores", 4, 2.8e9, 32, 16 * GIB,
        "Intel, Core i7-1165G7 specifications (base clock; 16 GiB is a usual fitting)",
        "https://ark.intel.com/content/www/us/en/ark/products/208921/intel-core-i7-1165g7-processor-12m-cache-up-to-4-70-ghz-with-ipu.html",
        "Intel, 64 and IA-32 Architectures Optimization Reference Manual: one 512-bit multiply-add per cycle",
    ),
)  # fmt: skip


def find_board(name: str) -> Board:
    """Return the board of a name; raises `ScenarioError` with the names there are."""
    check_choice("board", name, [board.name for board in BOARDS], fix="see psl.networks.boards_frame()")
    return next(board for board in BOARDS if board.name == name)


def check_efficiency(efficiency: float) -> float:
    """Return the share of the peak that training reaches, above 0 and at most 1; raises `ScenarioError`."""
    fix = "give a share of the peak, 0..1"
    return check_number("efficiency", efficiency, minimum=0, maximum=1, strict=True, fix=fix)


def boards_frame(efficiency: float = EFFICIENCY) -> pd.DataFrame:
    """Return one row per board of `BOARDS`: peak speed, speed assumed in training, memory, and the sources.

    Args:
        efficiency: share of the peak assumed, above 0 and at most 1 [R].

    Raises:
        ScenarioError: the share is out of range.
    """
    efficiency = check_efficiency(efficiency)
    rows = [
        {
            "processor": board.processor,
            "peak_gflops": board.peak_flops / 1e9,
            "assumed_gflops": efficiency * board.peak_flops / 1e9,
            "memory_gib": board.memory / GIB,
            "source": board.source,
            "url": board.url,
            "cycle_source": board.cycle_source,
        }
        for board in BOARDS
    ]
    return pd.DataFrame(rows, index=pd.Index([board.name for board in BOARDS], name="board"))
