"""The example configurations: as far as they can be tested without the clusters that they are for."""

import importlib.util
import shlex
from pathlib import Path

import pytest
import yaml

FOLDER = Path(__file__).parents[3] / "book/how_to/cluster"


def test_the_job_script_for_slurm() -> None:
    pytest.importorskip("dask_jobqueue")
    spec = importlib.util.spec_from_file_location("slurm", FOLDER / "slurm.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with module.cluster() as cluster:
        script = cluster.job_script()
        assert cluster.scheduler_address.startswith("tcp://")
    assert script.startswith("#!")
    for line in ("#SBATCH -p normal", "#SBATCH -t 12:00:00", "#SBATCH --cpus-per-task=1", "#SBATCH --mem=4G"):
        assert line in script
    assert "export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 PYTHONHASHSEED=0" in script
    assert "--nthreads 1" in script


def test_the_manifests_for_kubernetes_start_what_the_drills_start() -> None:
    manifests = list(yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text("utf-8")))
    assert [each["kind"] for each in manifests] == ["Deployment", "Service", "Deployment"]
    commands = {}
    for each in manifests:
        if each["kind"] == "Deployment":
            labels = each["spec"]["template"]["metadata"]["labels"]
            assert each["spec"]["selector"]["matchLabels"] == labels
            (container,) = each["spec"]["template"]["spec"]["containers"]
            commands[labels["part"]] = container["args"]
    (port,) = manifests[1]["spec"]["ports"]
    assert manifests[1]["spec"]["selector"] == {"app": "implicitreg", "part": "scheduler"}
    assert commands["scheduler"] == shlex.split(f"dask scheduler --port {port['port']} --no-dashboard")
    address = f"tcp://{manifests[1]['metadata']['name']}:{port['port']}"
    assert commands["worker"] == shlex.split(f"dask worker {address} --nthreads 1 --no-dashboard")
