"""The front door: `import psl` is quick and light, names stay what they are, and planning runs without torch."""

import importlib
import importlib.metadata
import json
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

import psl

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src"
HEAVY = ("torch", "torchvision", "sionna", "matplotlib", "sklearn", "pandas", "scipy", "networkx", "numpy", "IPython")

PLANNING = """
import psl
from psl.schedulers import edgesplit, epsl, pipeline
psl.networks, psl.simulation, psl.Profile, psl.run_study, psl.simulate, psl.Plan, psl.WirelessCell, psl.units
"""

# Prints, as JSON, the predicted and simulated seconds of a plan of each scheduler, and the result of a study.
PLAN_AND_SIMULATE = """
import json
import numpy as np
import psl
from psl.schedulers import edgesplit, epsl, pipeline

steps = np.arange(7.0)
profile = psl.Profile(
    names=["input", *"abcdef"], fwd_cost=1e6 * steps, bwd_cost=2e6 * steps, act_bits=8e4 - 1e4 * steps,
    grad_bits=8e4 - 1e4 * steps, param_bits=1e5 * steps, act_memory=1e4 * steps, last_bwd_cost=2e6,
)
cell = psl.WirelessCell(
    client_speed=[1e9, 2e9, 3e9], server_speed=1e11, uplink_gain=[[1e-9] * 4, [2e-9] * 4, [3e-9] * 4],
    bandwidth=[1e6] * 4, noise_psd=4e-21, client_power=[0.1] * 3, total_power=1.0, downlink_psd=1e-6,
)
sampled = psl.WirelessCell.sample(n_clients=3, n_subchannels=6, channel="log-distance")
plans = {
    "epsl": epsl.solve(profile, cell, batch_size=16),
    "epsl, sampled cell": epsl.solve(profile, sampled, batch_size=16),
    "edgesplit": edgesplit.solve(profile, psl.EdgeCluster.sample(n_devices=4)),
    "pipeline": pipeline.solve(profile, psl.EdgeNetwork.sample(n_servers=4), batch_size=32),
}
seconds = {name: [plan.round_time, psl.simulate(plan).makespan] for name, plan in plans.items()}

def run(seed):
    return psl.EdgeCluster.sample(n_devices=2, seed=seed).server_speed

study = psl.run_study(run, [{"seed": 0}, {"seed": 1}], n_jobs=1, progress=False)
print(json.dumps({"seconds": seconds, "study": study}))
"""


def python(code, *options, **kwargs):
    """Return what a new Python process prints."""
    done = subprocess.run([sys.executable, *options, "-c", code], capture_output=True, text=True, **kwargs)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def imported(code):
    """Return which heavy packages a new process has imported after some code."""
    return python(f"{code}\nimport sys; print(*[name for name in {HEAVY} if name in sys.modules])").split()


def test_import_psl_imports_nothing_heavy():
    assert imported("import psl") == []


def test_planning_and_simulation_import_no_torch():
    assert not set(imported(PLANNING)) & {"torch", "torchvision", "sionna", "sklearn", "matplotlib", "IPython"}


@pytest.mark.slow
def test_training_imports_no_drawing_and_no_channel_models():
    assert not set(imported("import psl; psl.train, psl.profile, psl.data")) & {"sionna", "matplotlib", "networkx"}


@pytest.mark.slow
def test_names_that_are_listed_are_there():
    assert dir(psl) == sorted(psl.__all__) == sorted(set(psl.__all__))
    for name in psl.__all__:
        assert getattr(psl, name).__doc__, name
    assert {"Profile", "cuts", "networks", "run_study", "schedulers", "simulate", "train"} <= set(dir(psl))


def test_a_name_that_is_not_there_is_no_attribute():
    assert not hasattr(psl, "solve")
    with pytest.raises(ImportError, match="solve"):
        from psl import solve  # noqa: F401


# Python sets a package's attribute when a module of the same name is imported: it must not replace the function.
SHADOWS = [
    ("psl.schedulers.edgesplit", "latency"),
    ("psl.schedulers.edgesplit", "solve"),
    ("psl.schedulers.epsl", "latency"),
    ("psl.schedulers.epsl", "solve"),
    ("psl.schedulers.pipeline", "latency"),
    ("psl.schedulers.pipeline", "solve"),
    ("psl.training", "train"),
]


def test_the_list_of_functions_named_like_their_module_is_complete():
    found = set()
    for init in (SOURCE / "psl").rglob("__init__.py"):
        package = ".".join(init.parent.relative_to(SOURCE).parts)
        if not package.startswith("psl.distributed"):
            modules = {path.stem for path in init.parent.glob("*.py")} | {path.name for path in init.parent.iterdir()}
            names = importlib.import_module(package).__all__
            found |= {(package, name) for name in names if name in modules and not is_module(package, name)}
    assert sorted(found) == SHADOWS


def is_module(package, name):
    return getattr(importlib.import_module(package), name).__class__.__name__ == "module"


@pytest.mark.slow
def test_a_function_named_like_its_module_stays_a_function():
    code = f"""
import importlib, sys
for package, name in {SHADOWS}:
    module = importlib.import_module(f"{{package}}.{{name}}")
    assert module is sys.modules[f"{{package}}.{{name}}"]
    assert getattr(sys.modules[package], name) is getattr(module, name), (package, name)
import psl
import psl.training.train
from psl import train
assert psl.train is psl.training.train is train is sys.modules["psl.training.train"].train
"""
    python(code)


def test_the_version_is_that_of_the_installed_distribution():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["name"] == "parallel-split-learning"
    assert psl.__version__ == importlib.metadata.version("parallel-split-learning") == project["project"]["version"]


def test_the_package_ships_its_types():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert set(project["tool"]["setuptools"]["package-data"]["psl"]) == {"py.typed", "*.pyi"}
    assert (SOURCE / "psl" / "py.typed").is_file()
    assert [path.name for path in (SOURCE / "psl").glob("*.pyi")] == ["__init__.pyi"]


def test_a_record_is_read_before_its_module_was_used(tmp_path):
    profile = psl.Profile.measured(["in", "a"], [0, 1], [0, 1], [8, 8])
    code = f"from psl.records import Record; print(type(Record.load({str(profile.save(tmp_path / 'p.json'))!r})))"
    assert python(code) == "<class 'psl.profiles.Profile'>"


# --- without torch ---

NEEDS_TORCH = ("torch", "torchvision", "torchgen", "functorch", "triton", "sionna", "nvidia")


@pytest.fixture(scope="module")
def without_torch(tmp_path_factory):
    """Return a function that runs code in an environment like this one, in which torch is not installed."""
    folder = tmp_path_factory.mktemp("site-packages")
    for installed in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for path in Path(installed).iterdir():
            name = path.name.split("-")[0].split(".")[0]
            if name not in NEEDS_TORCH and not name.startswith("nvidia_") and not (folder / path.name).exists():
                (folder / path.name).symlink_to(path)
    # Neither this environment's site-packages (-S) nor variables and folders of the user (-I) are on the path.
    start = f"import sys; sys.path += [{str(folder)!r}, {str(SOURCE)!r}]\n"
    return lambda code: python(start + code, "-I", "-S")


@pytest.mark.slow
def test_planning_simulation_and_studies_run_where_torch_is_not_installed(without_torch):
    code = "import importlib.util\nassert all(importlib.util.find_spec(name) is None for name in ('torch', 'sionna'))\n"
    found = json.loads(without_torch(code + PLAN_AND_SIMULATE))
    assert found == json.loads(python(PLAN_AND_SIMULATE)), "the same numbers as with torch"
    for name, (predicted, simulated) in found["seconds"].items():
        assert 0 < predicted < float("inf"), name
        assert simulated == pytest.approx(predicted, rel=0.5), name
    assert len(found["study"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "psl.train",
            "psl.train: expected the package 'torch', got an environment without it. "
            "Fix: pip install torch torchvision",
        ),
        (
            "psl.WirelessCell.sample(channel='umi')",
            "channel='umi': expected the package 'torch', got an environment without it. "
            "Fix: pip install torch torchvision, or use channel='log-distance'",
        ),
    ],
)
def test_what_needs_torch_says_so(without_torch, code, message):
    wrapped = f"import psl\ntry:\n    {code}\nexcept ModuleNotFoundError as error:\n    print(error.name, error)"
    assert without_torch(wrapped) == f"torch {message}"
