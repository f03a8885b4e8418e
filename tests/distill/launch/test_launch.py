"""What ships to launch with: every configuration is understood, `accelerate launch` starts it as typed, every preset
trains under the files meant for it, the launcher keeps signals and statuses, and the Slurm script requeues what stopped
on request and nothing else."""

import functools
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser

from distill.config import DistillRun, GuidedInput
from distill.engines.choose import PRECISIONS, choose_engine
from distill.engines.zero import check_settings
from distill.launch import FOLDER, check
from distill.launch.launcher import configuration
from distill.loop.fit import check_precision
from distill.method.step import train_step
from distill.method.student import student_from_teacher
from distill.presets import STUDENTS, TEACHERS
from distill.tasks import distil, train_teacher
from teacher.flow_matching import flow_matching_step
from teacher.network.batch import Batch
from teacher.network.mmaudio import MMAudio
from tests.distill import tiny
from tests.distill.processes import installed
from tests.teacher.network.test_network import conditions, small

ROOT = Path(__file__).parents[3]
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))
KINDS = {
    "one": "NO",
    "ddp": "MULTI_GPU",
    "fsdp2": "FSDP",
    "zero1": "DEEPSPEED",
    "zero2": "DEEPSPEED",
    "zero3": "DEEPSPEED",
}
SBATCH = FOLDER / "slurm" / "distill.sbatch"
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}


def plain(name):
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


def test_every_kind_of_engine_has_a_file():
    assert {name.split("_")[0] for name in NAMES} >= set(KINDS)


@pytest.mark.parametrize("name", NAMES)
def test_accelerate_understands_the_file(name):
    """Its own loader refuses unknown keys outside of sections; inside, an unknown one would be set and never read."""
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    kind = str(config.distributed_type.value)
    assert kind == KINDS.get(name.split("_")[0], kind)
    assert config.num_processes == (1 if name.startswith("one_gpu") else 8)
    assert config.num_machines == 1
    # bf16 is autocast of the engine's own: weights are float32 in either case.
    assert config.mixed_precision == ("no" if "float32" in name else "bf16")
    known = set(vars(launch_command_parser().parse_args(["x.py"])))
    for section in ("deepspeed_config", "fsdp_config"):
        assert set(plain(name).get(section, {})) <= known
    files = [value for key, value in plain(name).get("deepspeed_config", {}).items() if key.endswith("_file")]
    assert all((FOLDER / file).is_file() for file in files)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("zero")])
def test_the_zero_engine_takes_the_section(name, monkeypatch):
    """Stage and offloading are those of the name, precision and optimiser are left to the engine, which refuses others;
    several nodes are started by accelerate, not over ssh."""
    from accelerate.utils import DeepSpeedPlugin
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    section = plain(name)["deepspeed_config"]
    assert section["deepspeed_multinode_launcher"] == "standard"
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    settings = DeepSpeedPlugin(
        zero_stage=section["zero_stage"],
        offload_optimizer_device=section["offload_optimizer_device"],
        offload_param_device=section["offload_param_device"],
        zero3_init_flag=section["zero3_init_flag"],
    ).deepspeed_config
    check_settings(settings)
    zero = DeepSpeedZeroConfig(**settings["zero_optimization"])
    assert int(zero.stage) == int(name[4])
    offloaded = "offload" in name
    assert (zero.offload_optimizer.device == "cpu") == offloaded
    assert (zero.offload_param.device == "cpu") == (offloaded and name.startswith("zero3"))


def test_fsdp_is_the_second_version():
    assert plain("fsdp2_8gpu")["fsdp_config"]["fsdp_version"] == 2


def test_a_configuration_is_found_by_name_or_path(tmp_path):
    own = tmp_path / "mine.yaml"
    own.write_text("")
    assert configuration(str(own)) == str(own)
    assert configuration("zero2_8gpu") == configuration("zero2_8gpu.yaml") == str(FOLDER / "zero2_8gpu.yaml")
    with pytest.raises(FileNotFoundError, match=r"no configuration zero4_8gpu; shipped are ddp_8gpu, .*zero3_offload"):
        configuration("zero4_8gpu")


@pytest.mark.parametrize("name", [name for name in NAMES if "float32" in name])
def test_a_float32_file_differs_in_its_precision_alone(name):
    assert plain(name) == plain(name.replace("_float32", "")) | {"mixed_precision": "no"}


DESCRIBE = """
import atexit, os, torch
say = lambda text: os.write(1, (text + "\\n").encode())  # in one piece, which print does not promise
atexit.register(lambda: say("in the group" if torch.distributed.is_initialized() else "left"))
from distill.engines import choose_engine
say(choose_engine().describe())
"""


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ddp_8gpu", "DDP, 2 process(es), cpu, bfloat16 autocast"),
        ("zero2_8gpu", "ZeRO-2, 2 process(es), cpu, bfloat16 autocast"),
        ("zero2_float32_8gpu", "ZeRO-2, 2 process(es), cpu, float32"),
    ],
)
def test_accelerate_launch_starts_two_processes_as_typed(tmp_path, name, expected):
    """The console command itself, without a flag that says there is no GPU. The process group is left before the
    interpreter ends: gloo's threads abort a process that ends first, now and then."""
    script = tmp_path / "describe.py"
    script.write_text(DESCRIBE)
    command = [check.console_command(), "launch", "--config_file", f"distill/configs/{name}.yaml"]
    command += ["--num_processes", "2", str(script)]
    ended = subprocess.run(command, cwd=ROOT, env=installed(tmp_path / "site"), capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    lines = re.sub(r"cpu:\d", "cpu", ended.stdout).splitlines()
    assert lines.count(expected) == lines.count("left") == 2


@pytest.mark.parametrize("arguments", [["--cpu"], ["--config_file", str(FOLDER / "one_gpu.yaml")]])
def test_one_process_in_place_of_several_is_an_error(tmp_path, arguments):
    """accelerate starts one process then, and says nothing."""
    script = tmp_path / "describe.py"
    script.write_text(DESCRIBE)
    command = [check.console_command(), "launch", *arguments, "--num_processes", "2", str(script)]
    ended = subprocess.run(command, env=installed(tmp_path / "site"), capture_output=True, text=True)
    assert ended.returncode != 0
    assert "ValueError: several processes were asked for and accelerate launch started one" in ended.stderr


def test_one_process_beside_a_port_of_somebody_elses_is_none(monkeypatch):
    """mpirun's processes are counted by mpirun, and a program that accelerate did not launch is not asked."""
    monkeypatch.setenv("MASTER_PORT", "29500")
    assert choose_engine().processes == 1


def stand_in(tmp_path, monkeypatch, text):
    (tmp_path / "accelerate").write_text(f"#!/bin/bash\n{text}\n")
    (tmp_path / "accelerate").chmod(0o755)
    monkeypatch.setattr(check, "console_command", lambda: str(tmp_path / "accelerate"))


def test_the_proof_of_set_up_passes_on_what_the_processes_say(tmp_path, monkeypatch):
    stand_in(tmp_path, monkeypatch, "echo noise; echo 'ZeRO-2, 2 process(es), cpu; 2 processes answered'")
    assert check.check() == "ZeRO-2, 2 process(es), cpu"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "echo Traceback >&2; echo 'RuntimeError: operator torchvision::nms does not exist' >&2; exit 1",
            "(RuntimeError: operator torchvision::nms does not exist)",
        ),
        ("echo 'torch.distributed.ChildFailedError: ' >&2; echo ' exitcode: -6' >&2; exit 1", "(exitcode: -6)"),
        ("echo 'ZeRO-2; 1 processes answered'", "(there was no output)"),
        ("sleep 60", "did not start within 1 s"),
    ],
)
def test_the_proof_of_set_up_fails_in_one_line(tmp_path, monkeypatch, capsys, text, expected):
    stand_in(tmp_path, monkeypatch, text)
    monkeypatch.setattr(check, "LIMIT_S", 1.0)
    monkeypatch.setattr(sys, "argv", ["check"])
    with pytest.raises(SystemExit) as left:
        check.cli()
    assert left.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line
    assert line.startswith("error: ")
    assert line.endswith("--num_processes 2 -m distill.launch.check --answer")


KINDS_OF_RUN = {"distill": STUDENTS, "train_teacher": TEACHERS}


@functools.cache
def refusal(kind, preset, precision):
    """What the loop, or one step of a small network, says against a preset's method in a precision; None for nothing.
    Engines differ in where they enter autocast, not in whether."""
    method = KINDS_OF_RUN[kind][preset]().method
    torch.manual_seed(0)
    net, g = MMAudio(small()), torch.Generator().manual_seed(0)
    latents = torch.randn(8, 9, 4, generator=g)
    batch = Batch(latents=latents, conditions=conditions(small(), 8).to("cpu", torch.float32), indices=torch.arange(8))
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision != torch.float32):
            if kind == "train_teacher":
                terms = flow_matching_step(net, batch, method, generator=g)
            else:
                check_precision(method.objective.needs.derivative == "difference", precision)
                guided, head = isinstance(method.velocity, GuidedInput), min(method.velocity_head, 1)
                student = student_from_teacher(net, guidance_embedding=guided, velocity_head=head)
                terms = train_step(student, student, net, batch, method, generator=g)
        terms.loss.mean().backward()
    except ValueError as error:
        return str(error)
    assert torch.isfinite(terms.loss).all()
    return None


def precision_of(file):
    return PRECISIONS[load_config_from_file(str(file)).mixed_precision]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("kind", "preset"), [(kind, preset) for kind, table in KINDS_OF_RUN.items() for preset in table]
)
def test_a_preset_trains_under_every_file_meant_for_it(kind, preset, name):
    """Students whose derivative is a difference are meant for the float32 files, all others for every file."""
    objective = STUDENTS[preset]().method.objective if kind == "distill" else None
    refused = refusal(kind, preset, precision_of(FOLDER / f"{name}.yaml"))
    if objective is not None and objective.needs.derivative == "difference" and "float32" not in name:
        assert "need float32: launch with a file of distill/configs that has float32 in its name" in refused
    else:
        assert refused is None


def test_the_loop_refuses_a_difference_in_bfloat16_before_it_writes(tmp_path, monkeypatch):
    """Before the first step, and before anything is in the run folder."""
    data = tiny.features(tmp_path)
    teacher = train_teacher(tiny.teacher_run(data), tmp_path / "teacher")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    run = DistillRun(data=(data,), teacher=teacher, method=STUDENTS["terminal"]().method, loop=tiny.LOOP)
    with pytest.raises(ValueError, match=r"need float32: launch with .* --mixed_precision no"):
        distil(run, tmp_path / "run")
    assert not (tmp_path / "run").exists()


WORKER = """
import os, signal, sys, time
from pathlib import Path
got = []
for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda n, frame: got.append(n))
Path(sys.argv[1], os.environ.get("RANK", "0")).touch()
for _ in range(300):
    time.sleep(0.1)
    if got:
        sys.exit(int(sys.argv[2]) if got == [int(sys.argv[3])] else 99)
sys.exit(98)
"""


def launched(tmp_path, config, processes, sent, code):
    """Exit status of a launcher that was sent a signal once its processes ran and that they answer with `code`."""
    (tmp_path / "worker.py").write_text(WORKER)
    (tmp_path / "up").mkdir()
    command = [
        sys.executable,
        "-m",
        "distill.launch.launcher",
        "--config_file",
        config,
        "--num_processes",
        str(processes),
    ]
    command += [str(tmp_path / "worker.py"), str(tmp_path / "up"), str(code), str(int(sent))]
    launcher = subprocess.Popen(command, env=ENV, stderr=subprocess.PIPE, text=True)
    while len(list((tmp_path / "up").iterdir())) < processes:
        assert launcher.poll() is None, launcher.communicate()[1]
        time.sleep(0.05)
    launcher.send_signal(sent)
    launcher.communicate(timeout=60)
    return launcher.returncode


@pytest.mark.parametrize(("config", "processes"), [("one_gpu", 1), ("ddp_8gpu", 2)])
def test_signals_reach_the_processes_and_their_status_comes_back(tmp_path, config, processes):
    assert launched(tmp_path, config, processes, signal.SIGUSR1, 75) == 75


def test_sigterm_sets_no_deadline_and_success_stays_success(tmp_path):
    assert launched(tmp_path, "ddp_8gpu", 2, signal.SIGTERM, 0) == 0


STAND_INS = {
    "srun": 'while [[ $1 == --* ]]; do shift; done\nSLURM_NODEID=0 "$@" & echo $! > task\nwait $!',
    "scontrol": "case $1 in show) echo node-a; echo node-b;; requeue) echo $2 > requeued;; esac",
    "scancel": 'echo "$@" > cancelled; kill -USR1 $(cat task)',
    "squeue": "echo ${STATE:-RUNNING}",
    "launcher": 'echo "$@" > arguments\n[ "$ANSWER" != now ] || exit $CODE\n'
    'exec python3 -c "import signal, sys, time; signal.signal(signal.SIGUSR1, lambda *a: sys.exit($CODE)); '
    "open('up', 'w').close(); time.sleep(20)\"",
}


def job(tmp_path, *, warned=False, code=0, **env):
    """Run the batch script beside stand-ins for Slurm and the launcher; its exit status and whether it requeued."""
    for name, text in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": "4711", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "node-[a-b]"}
    variables = {**os.environ, **slurm, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": "./launcher"}
    variables |= {"CODE": str(code), "ANSWER": "later" if warned else "now", **env}
    command = ["bash", str(SBATCH), "zero2_8gpu", "-m", "scripts.distill", "mf-mjt", "--out", "a folder"]
    script = subprocess.Popen(command, cwd=tmp_path, env=variables, stdout=subprocess.PIPE, text=True)
    if warned:
        while not (tmp_path / "up").exists():
            assert script.poll() is None
            time.sleep(0.02)
        script.send_signal(signal.SIGUSR1)
    script.communicate(timeout=60)
    return script.returncode, (tmp_path / "requeued").exists()


def test_slurm_script_is_valid_and_launches_every_node(tmp_path):
    subprocess.run(["bash", "-n", str(SBATCH)], check=True)
    assert job(tmp_path) == (0, False)
    expected = (tmp_path / "arguments").read_text().strip()
    assert expected == (
        "-m distill.launch.launcher --config_file zero2_8gpu --num_machines 2 --num_processes 16 --machine_rank 0 "
        "--main_process_ip node-a --main_process_port 24711 -m scripts.distill mf-mjt --out a folder"
    )


def test_slurm_script_passes_the_warning_on_and_requeues(tmp_path):
    assert job(tmp_path, warned=True, code=75) == (0, True)
    assert (tmp_path / "cancelled").read_text() == "--signal=USR1 4711\n"
    assert (tmp_path / "requeued").read_text() == "4711\n"


@pytest.mark.parametrize(
    ("warned", "code", "env", "expected"),
    [
        (False, 75, {}, (0, True)),  # preempted: the nodes had the signal directly
        (True, 137, {}, (0, True)),  # cut off while saving
        (False, 137, {}, (137, False)),
        (False, 2, {}, (2, False)),
        (True, 0, {}, (0, False)),  # finished in time
        (True, 70, {}, (70, False)),
        (False, 71, {}, (71, False)),
        (False, 71, {"REQUEUE_ON": "75 71"}, (0, True)),
        (False, 7, {"REQUEUE_ON": "75 71"}, (7, False)),
        (True, 75, {"STATE": "CANCELLED"}, (75, False)),
        (True, 75, {"SLURM_RESTART_COUNT": "3", "MAX_RESTARTS": "3"}, (75, False)),
    ],
)
def test_slurm_script_requeues_nothing_else(tmp_path, warned, code, env, expected):
    assert job(tmp_path, warned=warned, code=code, **env) == expected


def test_the_former_command_still_launches_and_names_the_new_one(tmp_path):
    script = tmp_path / "hello.py"
    script.write_text("print('started')")
    command = [sys.executable, "-m", "distill.configs.launch", "--config_file", "one_gpu", "--cpu", str(script)]
    ended = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "started" in ended.stdout
    assert "is now python -m distill.launch.launcher" in ended.stderr
