"""The doctor as it is typed: the page's own example, run folders, exit codes and one-line errors."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from meanflow.config import to_plain
from meanflow.doctor import admit
from meanflow.doctor.accuracy import examine_accuracy
from scripts import doctor
from teacher.network.mmaudio import MMAudio
from teacher.network.variants import MMAudioConfig

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "doctor.md").read_text()


def called(monkeypatch, capsys, *arguments):
    """The command in this process: (exit status, standard output, standard error)."""
    monkeypatch.setattr(sys, "argv", ["doctor", *map(str, arguments)])
    status = 0
    try:
        doctor.cli()
    except SystemExit as end:
        status = int(end.code)
    said = capsys.readouterr()
    return status, said.out, said.err


def test_the_example_of_the_page_runs(tmp_path, monkeypatch, capsys):
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "mynet.py").write_text(example)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())  # the command adds the folder that it is started in
    status, out, _ = called(monkeypatch, capsys, "--module", "mynet:factory", "--json", "report.json")
    assert status == 0, out
    assert "Nothing to mend" in out
    assert max(len(line) for line in out.splitlines()) <= 120
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["healthy"] is True
    assert report["processes"]["gradient"] < 1e-12
    assert report["shape"] == [4, 16, 8]


def test_a_disease_is_exit_status_1(monkeypatch, capsys):
    status, out, _ = called(
        monkeypatch, capsys, "--module", "tests.meanflow.doctor.patients:WrongFactor", "--no-processes", "--frames", 3
    )
    assert status == 1
    assert "2. derivative against differences: BAD" in out
    assert "x_t (4, 3, 8)" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --module"),
        (["--module", "a:b", "--run", "c"], "give either --module"),
        (["--module", "no_such_module_here:f"], "cannot be imported"),
        (["--module", "tests.meanflow.doctor.patients:nonsense"], "got str"),
        (["--module", "tests.meanflow.doctor.patients:Picky"], "channel 9 of 8"),
        (["--module", "tests.meanflow.doctor.patients:conditioned", "--frames", 3], "brings its own inputs"),
        (["--module", "tests.meanflow.doctor.patients:Healthy", "--batch", 1], "--batch must be at least 2"),
        (["--module", "tests.meanflow.doctor.patients:Healthy", "--limit-s", 0], "--limit-s must be positive"),
        (["--run", "nowhere"], "is not a run folder"),
        (["--run", "nowhere", "--channels", 3], "leave out --channels"),
    ],
)
def test_bad_input_gets_one_line(monkeypatch, capsys, arguments, message):
    status, _, err = called(monkeypatch, capsys, *arguments)
    assert status == 2
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert message in line


@pytest.mark.parametrize("interval", [True, False])
def test_networks_of_run_folders(tmp_path, interval):
    """A student depends on r and passes; a teacher ignores it. Nothing is frozen but what training freezes."""
    config = MMAudioConfig(
        num_heads=2, head_dim=8, joint_depth=1, fused_depth=1, latent_channels=4, clip_dim=6, sync_dim=5, text_dim=7,
        text_tokens=3, mlp_multiple_of=8, interval_embedding=interval,
    )  # fmt: skip
    torch.manual_seed(0)
    net = MMAudio(config)
    for parameter in net.parameters():
        parameter.data.normal_(std=0.3)
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"network": to_plain(config)}))
    made = admit(doctor.RunFolder(run=tmp_path, batch=2, frames=8, seed=0))
    assert sum(a.requires_grad for a in made.module.parameters()) == sum(1 for _ in net.parameters()) - 3
    found = examine_accuracy(made)
    assert found.ignored == (() if interval else ("r",))
    assert found.error_float64 < 1e-6
    assert not found.forgotten
