"""The staged budget: closed forms of its figures, its file, its tables, and taking it of tiny networks."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from eval.report.budgets import budget_markdown, budget_table, totals_table
from eval.speed import measure as measure_module
from eval.speed import stages as stages_module
from eval.speed.budget import FINE_STAGES, Budget, Machine, Roofline, Setting, StageBudget, StageCost, Timing
from eval.speed.measure import measure_budget
from eval.speed.stages import StagedGenerator, Workload, published_stack, random_stages
from meanflow import Guidance
from scripts import speed as speed_script
from teacher.audio.embedded_codec import EmbeddedCodec
from teacher.audio.mmaudio_codec import MMAUDIO_16K, MMAUDIO_44K
from teacher.audio.vae import VAEConfig
from teacher.encoders.clip import ClipConfig
from teacher.encoders.registry import load_encoders
from teacher.encoders.synchformer import VisualConfig
from teacher.media import write_video
from teacher.network.conditions import Conditions
from teacher.network.mmaudio import MMAudio
from teacher.network.variants import variant
from teacher.sampling.generator import noise
from teacher.sampling.pipeline import Pipeline, SamplingConfig

DURATION_S = 0.64
LINE = Roofline(flops_per_s=100.0, bytes_per_s=10.0, dtype="float32", device="here")
ONE, GUIDED = Setting(steps=1, guidance=1.0), Setting(steps=25, guidance=4.5)
TINY_STACK = replace(
    MMAUDIO_16K,
    vae=VAEConfig(data_dim=80, latent_channels=20, width=8),
    vocoder=replace(MMAUDIO_16K.vocoder, initial_channels=64, resblock_kernel_sizes=(3,), resblock_dilations=((1,),)),
)
TINY_CLIP = ClipConfig(
    embed_dim=16, image_size=378, image_width=16, image_layers=1, image_heads=2, image_hidden=16,
    text_width=16, text_layers=1, text_heads=2, text_hidden=16, vocabulary=49_408,
)  # fmt: skip
TINY_VISUAL = VisualConfig(width=16, depth=1, heads=2, hidden=16)


def stage(name, seconds, *, batch=1, setting=None, flops=0, moved=0):
    cost = None if name == "decode+resize" else StageCost(flops=flops, bytes=moved, traffic=2 * moved, operators=3)
    return StageBudget(
        stage=name,
        batch=batch,
        dtype="float32",
        timing=Timing(median_s=seconds, p10_s=seconds / 2, p90_s=2 * seconds, repeats=5, warmup=2, warmup_s=9.0),
        cost=cost,
        setting=setting,
        evaluations=None if setting is None else setting.steps * (1 if setting.guidance == 1.0 else 2),
    )


def made(stages):
    return Budget(
        name="toy", duration_s=4.0, command="mf-speed --toy", cuda=None, tf32="none", compiled=False,
        machine=Machine(device="here", torch_version="2", threads=3, dtype="float32"),
        attention=("_some_attention",), rooflines=(LINE,), stages=tuple(stages),
    )  # fmt: skip


TOY = made(
    [
        stage("decode+resize", 64.0),
        stage("image encoder", 8.0, flops=400),  # floor 4 s by arithmetic
        stage("motion encoder", 8.0, moved=20),  # floor 2 s by memory
        stage("text encoder", 4.0, flops=100),  # floor 1 s
        stage("flow network", 2.0, setting=ONE, flops=100, moved=10),  # floor 1 s by both
        stage("flow network", 50.0, setting=GUIDED, flops=5000, moved=250),  # floor 50 s
        stage("latent decode", 1.0, flops=50),  # floor 0.5 s
        stage("vocoder", 16.0, flops=200),  # floor 2 s
        stage("text encoder", 8.0, batch=4),
        stage("flow network", 4.0, batch=4, setting=ONE),
        stage("latent decode", 2.0, batch=4),
        stage("vocoder", 34.0, batch=4),
    ]
)


def test_the_share_of_the_roofline_is_floor_over_median():
    stages = TOY.at(1, ONE)
    assert {name: TOY.floor_s(s) for name, s in stages.items()} == {
        "decode+resize": None, "image encoder": 4.0, "motion encoder": 2.0, "text encoder": 1.0,
        "flow network": 1.0, "latent decode": 0.5, "vocoder": 2.0,
    }  # fmt: skip
    assert tuple(stages) == FINE_STAGES
    assert TOY.efficiency(stages["vocoder"]) == 2.0 / 16.0
    assert TOY.efficiency(stages["decode+resize"]) is None
    assert TOY.efficiency(TOY.at(1, GUIDED)["flow network"]) == 1.0


def test_totals_say_what_is_in_them():
    totals = {t.name: t for t in TOY.totals(1, ONE)}
    assert {name: t.median_s for name, t in totals.items()} == {
        "generator only": 2.0, "noise to wave": 19.0, "text-to-audio": 23.0, "frames to wave": 39.0,
        "video-to-audio": 103.0,
    }  # fmt: skip
    assert totals["noise to wave"].stages == ("flow network", "latent decode", "vocoder")
    assert totals["text-to-audio"].floor_s == 1.0 + 1.0 + 0.5 + 2.0
    assert totals["video-to-audio"].uncounted == ("decode+resize",)
    assert {t.name: t.median_s for t in TOY.totals(1, GUIDED)}["generator only"] == 50.0
    assert [t.name for t in TOY.totals(4, ONE)] == ["generator only", "noise to wave", "text-to-audio"]


def test_real_time_factors_are_per_second_of_sound_made():
    rtf = TOY.rtf(1, ONE)
    assert (rtf["flow network"], rtf["codec decode"], rtf["video-to-audio"]) == (2.0 / 4, 17.0 / 4, 103.0 / 4)
    assert TOY.rtf(4, ONE)["text-to-audio"] == 48.0 / 16
    with pytest.raises(ValueError, match=r"no Setting.* at batch 4"):
        TOY.rtf(4, GUIDED)


def test_a_budget_survives_its_file_and_a_damaged_one_is_named(tmp_path):
    path = tmp_path / "runs" / "budget.json"
    TOY.write(path)
    assert Budget.read(path) == TOY
    plain = json.loads(path.read_text())
    plain["stages"][0]["stage"] = "magic"
    path.write_text(json.dumps(plain))
    with pytest.raises(ValueError, match=r"budget\.json: not a budget \(stage must be one of .*'magic'"):
        Budget.read(path)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"budget\.json: not a budget"):
        Budget.read(path)


def test_wrong_values_are_refused():
    with pytest.raises(ValueError, match="bfloat16 is missing"):
        made([replace(stage("vocoder", 1.0), dtype="bfloat16")])
    with pytest.raises(ValueError, match="setting belongs to the flow network"):
        stage("flow network", 1.0)
    with pytest.raises(ValueError, match="setting belongs to the flow network"):
        stage("vocoder", 1.0, setting=ONE)
    with pytest.raises(ValueError, match="batch must be at least 1"):
        stage("vocoder", 1.0, batch=0)


def test_the_table_of_a_batch_is_a_latency_only_at_batch_1():
    table = budget_table(TOY, 1)
    cells = {row.model: dict(zip(table.columns[1:], [c.text for c in row.cells], strict=True)) for row in table.rows}
    assert len(table.rows) == 8
    flow = cells["flow network: 25 steps, guidance 4.5, NFE 50"]
    assert (flow["Median ms"], flow["p10–p90 ms"], flow["Floor ms"]) == ("50000", "25000–100000", "50000")
    assert (flow["Efficiency"], flow["RTF"], flow["Operators"]) == ("100 %", "12.5", "3")
    assert cells["vocoder"]["Efficiency"] == "12.5 %"
    assert cells["decode+resize"]["Floor ms"] == cells["decode+resize"]["GFLOP"] == cells["decode+resize"]["Efficiency"]
    several = budget_table(TOY, 4)
    assert "RTF" not in several.columns
    assert several.rows[-1].cells[-1].text == "0.471"  # 16 s of sound in 34 s
    with pytest.raises(ValueError, match="batch must be one of 1, 4, got 2"):
        budget_table(TOY, 2)


def test_the_totals_and_the_whole_in_markdown():
    table = totals_table(TOY, 1)
    assert [row.model for row in table.rows][:5] == [t.name for t in TOY.totals(1, ONE)]
    assert "without decode+resize" in table.rows[4].cells[2].text
    text = budget_markdown(TOY)
    for part in ("toy", "3 threads", "GFLOP/s", "Batch 1: latency", "Batch 4: throughput", "not compiled", "TF32 none",
                 "_some_attention", "5 timed calls a stage after 2 of warm-up", "1 clip of 4 s", "mf-speed --toy",
                 "the longest warm-up took 9 s"):  # fmt: skip
        assert part in text, part
    assert "Throughput" not in text.split("## Batch 4")[0]


@pytest.fixture(scope="module")
def tiny():
    config = replace(variant("debug_16k"), head_dim=16)
    return random_stages(config, name="tiny", stack=TINY_STACK, encoders="all", clip=TINY_CLIP, visual=TINY_VISUAL)


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    frames = np.random.default_rng(0).integers(0, 256, (25, 48, 64, 3), dtype=np.uint8)
    write_video(path, frames, 25.0, np.zeros(16_000, np.float32), 16_000)
    return path


def test_random_stages_are_measured_whole(tiny, film):
    lines = []
    workload = Workload(duration_s=DURATION_S, captions=("a", "b"), windows=((film, 0.0),))
    budget = measure_budget(
        tiny, workload, steps=(1, 3), guidance=(Guidance(), Guidance(omega=2.0)), batches=(1, 2), repeats=1,
        rooflines=(LINE,), command="here", report=lines.append,
    )  # fmt: skip
    assert [s.stage for s in budget.stages if s.batch == 1] == [
        *FINE_STAGES[:4],
        *["flow network"] * 4,
        *FINE_STAGES[5:],
    ]
    assert len(lines) == len(budget.stages) == 20
    assert [s.evaluations for s in budget.stages if s.setting is not None] == [1, 3, 2, 6] * 2
    one = budget.at(1, ONE)
    assert one["decode+resize"].cost is None
    three = budget.at(1, Setting(steps=3, guidance=1.0))["flow network"].cost
    conditions = (3 * one["flow network"].cost.flops - three.flops) / 2  # done once, whatever the steps
    assert 0 < conditions < one["flow network"].cost.flops
    # Two clips: the same weights, twice the arithmetic.
    assert budget.at(2, ONE)["vocoder"].cost.flops == 2 * one["vocoder"].cost.flops
    assert budget.at(2, ONE)["vocoder"].cost.bytes < 2 * one["vocoder"].cost.bytes
    assert budget.at(2, ONE)["image encoder"].cost.flops == 2 * one["image encoder"].cost.flops
    assert all(t.median_s > 0 for t in budget.totals(2, ONE))
    assert len(budget.totals(1, ONE)) == 5
    assert any("attention" in name for name in budget.attention)
    assert all(s.timing.warmup == 1 for s in budget.stages)
    assert budget.machine.dtype == "float32"


def test_the_weights_of_a_stage_are_read_once_in_a_call(tiny):
    calls = {
        c.stage: c for c in tiny.calls(Workload(duration_s=DURATION_S), batch=1, steps=(1,), guidance=(Guidance(),))
    }
    assert set(calls) == {"text encoder", "flow network", "latent decode", "vocoder"}  # neither film nor random frames
    budget = measure_budget(tiny, Workload(duration_s=DURATION_S), repeats=1, rooflines=(LINE,))
    net = sum(p.numel() for p in tiny.generator.net.parameters())
    assert budget.at(1, ONE)["flow network"].cost.bytes >= 4 * 0.95 * net
    with pytest.raises(ValueError, match="batches must be one or more different values"):
        measure_budget(tiny, Workload(duration_s=DURATION_S), batches=(1, 1))
    with pytest.raises(ValueError, match="warmup and repeats must be at least 1, got 0"):
        measure_budget(tiny, Workload(duration_s=DURATION_S), warmup=0)


def test_half_precision_has_its_own_roofline(monkeypatch):
    asked = []

    def quick(dtype, device):
        asked.append((dtype, device))
        return replace(LINE, dtype=str(dtype).removeprefix("torch."))

    monkeypatch.setattr(measure_module, "roofline_of", quick)
    config = replace(variant("debug_16k"), head_dim=16)
    model = random_stages(config, name="tiny", stack=TINY_STACK, encoders="none", precision="bfloat16")
    workload = Workload(duration_s=DURATION_S, random_frames=True)
    budget = measure_budget(model, workload, repeats=1)
    assert {(s.stage, s.dtype) for s in budget.stages} == {
        ("flow network", "bfloat16"), ("latent decode", "float32"), ("vocoder", "float32"),
    }  # fmt: skip
    assert asked == [(torch.float32, "cpu"), (torch.bfloat16, "cpu")]
    demo = random_stages(config, name="tiny", stack=TINY_STACK, encoders="none", precision="demo")
    half = measure_budget(demo, workload, repeats=1, rooflines=budget.rooflines).at(1, ONE)["flow network"].cost
    assert half.bytes < 0.6 * budget.at(1, ONE)["flow network"].cost.bytes  # weights of two bytes, not four


def test_each_variant_takes_the_stack_of_its_rate():
    assert published_stack(variant("small_16k")) is MMAUDIO_16K
    assert published_stack(variant("large_44k_v2")) is MMAUDIO_44K


def test_a_pipeline_is_cut_at_its_own_stages(film):
    codec = EmbeddedCodec.fit([0.1 * torch.randn(200_000, generator=torch.Generator().manual_seed(0))])
    net = MMAudio(replace(variant("debug_16k"), head_dim=16, interval_embedding=True)).eval()
    encoders = load_encoders("embedded")
    pipeline = Pipeline(net=net, codec=codec, encoders=encoders, window_s=DURATION_S)
    model = StagedGenerator.of_pipeline(pipeline, "a run")
    workload = Workload(duration_s=DURATION_S, windows=((film, 0.1),))
    with pytest.raises(ValueError, match="too short"):
        measure_budget(model, replace(workload, windows=((film, 0.9),)), repeats=1, rooflines=(LINE,))
    budget = measure_budget(model, workload, repeats=1, rooflines=(LINE,))
    assert tuple(budget.at(1, ONE)) == FINE_STAGES
    calls = {c.stage: c.call for c in model.calls(workload, batch=2, steps=(1,), guidance=(Guidance(),))}
    assert calls["flow network"]().shape == (2, 20, 20)
    frames = codec.sequence.latent_frames(DURATION_S)
    e = noise([0, 1], frames, codec.latent_channels)
    latents = pipeline.generator.latents(Conditions.empty(2, DURATION_S), e, SamplingConfig())
    wave = latents
    for stage in pipeline.generator.decoder:
        wave = stage.call(wave)
    assert torch.equal(wave, codec.decode(latents))
    assert [f.shape for f in calls["image encoder"]()] == [(5, 1024)] * 2


def test_the_text_tower_alone_leaves_the_image_tower_without_memory():
    image, text = stages_module._clip(TINY_CLIP, torch.device("cpu"), with_image=False)
    assert image is None
    assert text(["a dog"]).shape == (1, 77, 16)
    assert {p.is_meta for p in text.net.visual.parameters()} == {True}


def test_the_command_writes_the_budget_and_its_table(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(stages_module, "MMAUDIO_16K", TINY_STACK)
    monkeypatch.setattr(measure_module, "roofline_of", lambda dtype, device: LINE)
    out = tmp_path / "made" / "budget.json"
    run = ["mf-speed", "--variant", "debug_16k", "--encoders", "none", "--duration-s", "0.64", "--device", "cpu"]
    asked = ["--steps", "2", "--guidance", "1", "1.4", "--batch", "1", "3", "--repeats", "2", "--warmup", "1"]
    monkeypatch.setattr("sys.argv", [*run, *asked, "--out", str(out)])
    speed_script.cli()
    budget = Budget.read(out)
    assert budget.batches == (1, 3)
    assert budget.settings(3) == (Setting(steps=2, guidance=1.0), Setting(steps=2, guidance=1.4))
    assert {s.timing.repeats for s in budget.stages} == {2}
    assert budget.duration_s == 0.64
    text = out.with_suffix(".md").read_text()
    assert text == budget_markdown(budget)
    assert text in capsys.readouterr().out
    assert "debug_16k, random weights" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --run or --variant"),
        (["--variant", "debug_16k", "--run", "x"], "give either --run or --variant"),
        (["--variant", "huge"], "unknown variant 'huge'"),
        (["--variant", "debug_16k", "--out", "x.md"], "--out is the JSON file"),
        (["--run", "nowhere"], "nowhere"),
        (["--variant", "debug_16k", "--encoders", "none", "--warmup", "0"], "warmup and repeats must be at least 1"),
        (
            ["--variant", "debug_16k", "--encoders", "none", "--video", "a.mp4", "--data", "b"],
            "either --data or --video",
        ),
    ],
)
def test_bad_input_gets_one_line(monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(stages_module, "MMAUDIO_16K", TINY_STACK)
    monkeypatch.setattr("sys.argv", ["mf-speed", "--device", "cpu", *arguments])
    with pytest.raises(SystemExit) as left:
        speed_script.cli()
    assert left.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ")
    assert message in lines[-1]
