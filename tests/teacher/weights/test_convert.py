"""Official checkpoints become component files, or one line says why not and nothing is written."""

import hashlib
import io
import os
import pickle
import resource
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import teacher.audio.vocoder as vocoder
from teacher.audio.vocoder import BigVGAN, VocoderConfig
from teacher.files import FolderLock, LockedError, check_digests, read_digests
from teacher.files.components import read_component_info, read_tensors, write_component
from teacher.files.errors import WeightsError
from teacher.weights import layouts
from teacher.weights.cards import COMPONENTS, card
from teacher.weights.convert import Digests, convert_file, ensure_component
from teacher.weights.untrusted import check_volume, load_untrusted, read_checkpoint
from tests.teacher import official

SMALL_VOCODER = VocoderConfig(
    num_mels=4, upsample_rates=(2, 2), upsample_kernel_sizes=(4, 4), initial_channels=8,
    resblock_kernel_sizes=(3,), resblock_dilations=((1, 3, 5),),
)  # fmt: skip


@pytest.fixture
def tiny(monkeypatch):
    """small_16k and its vocoder in a size for tests."""
    official.use_tiny_network(monkeypatch)
    monkeypatch.setattr(vocoder, "BIGVGAN_16K", SMALL_VOCODER)
    yield
    layouts.layouts.cache_clear()


@pytest.fixture
def weights(tmp_path):
    folder = tmp_path / "weights"
    folder.mkdir()
    return folder


def converted(source, weights, **options):
    path = convert_file(source, weights, **options)
    return read_tensors(path), read_component_info(path)


# --- layouts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("component", [c for c in COMPONENTS if c not in ("synchformer", "clip_dfn5b_h14_378")])
def test_layouts_are_those_of_the_official_files(recordings, component):
    recorded = official.manifest(recordings.parent / "manifests", component)
    assert layouts.canonical(component, recorded) == layouts.layouts(component)[0]
    assert layouts.identify(recorded) == component


def test_synchformer_is_known_whole_and_by_its_pictures_alone(recordings):
    whole, visual = (official.manifest(recordings.parent / "manifests", f"synchformer_{n}") for n in ("full", "visual"))
    assert layouts.layouts("synchformer") == (whole, visual)
    assert layouts.identify(visual) == layouts.identify(whole) == "synchformer"


def test_clip_has_the_published_number_of_parameters():
    """ViT-H/14 with QuickGELU at 378 pixels: 986.71 million in open_clip's table of models."""
    shapes = layouts.layouts("clip_dfn5b_h14_378")[0]
    assert round(sum(torch.Size(shape).numel() for shape in shapes.values()) / 1e6, 2) == 986.71
    assert layouts.identify(shapes | {"logit_scale": (1,)}) == "clip_dfn5b_h14_378"


def test_no_two_components_are_alike():
    for component in COMPONENTS:
        for layout in layouts.layouts(component):
            assert layouts.identify(layout) == component
    assert layouts.identify({"a": (1,)}) is None


# --- what is accepted ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["zip", "old", "safetensors", "with tables", "parameters"])
def test_a_network_is_converted_whatever_the_form(tiny, tmp_path, weights, form):
    tensors, source = official.network_tensors(), tmp_path / "net.pth"
    if form == "safetensors":
        save_file(tensors, source)
    else:
        extra = official.tables() if form == "with tables" else {}
        wrapped = {n: torch.nn.Parameter(t) for n, t in tensors.items()} if form == "parameters" else tensors
        torch.save(wrapped | extra, source, _use_new_zipfile_serialization=form != "old")
    notes = []
    made, info = converted(source, weights, component="mmaudio_small_16k", report=notes.append)
    assert set(made) == set(tensors)
    assert all(torch.equal(made[name], tensors[name]) for name in tensors)
    content = source.read_bytes()
    assert (info.component, info.source) == ("mmaudio_small_16k", "net.pth")
    assert info.licence == card("mmaudio_small_16k").licence
    assert (info.sha256, info.md5) == (hashlib.sha256(content).hexdigest(), hashlib.md5(content).hexdigest())
    assert len(notes) == 1
    assert notes[0].startswith("warning: net.pth is not the published mmaudio_small_16k: its md5 is ")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32_with_a_note(tiny, tmp_path, weights, dtype):
    tensors, source = {n: t.to(dtype) for n, t in official.network_tensors().items()}, tmp_path / "half.safetensors"
    save_file(tensors, source)
    notes = []
    made, _ = converted(source, weights, report=notes.append)
    assert all(made[name].dtype == torch.float32 and torch.equal(made[name], tensors[name].float()) for name in tensors)
    assert f"half.safetensors holds {str(dtype).removeprefix('torch.')} numbers" in notes[1]


@pytest.mark.parametrize(
    "suffixes",
    [(".weight_g", ".weight_v"), (".parametrizations.weight.original0", ".parametrizations.weight.original1")],
)
@pytest.mark.parametrize("nested", [True, False])
def test_a_vocoder_is_folded_from_every_naming(tiny, tmp_path, weights, suffixes, nested):
    torch.manual_seed(0)
    plain = BigVGAN(SMALL_VOCODER).state_dict()
    state, source = official.weight_norm(plain, suffixes), tmp_path / "best_netG.pt"
    torch.save({"generator": state, "steps": 5} if nested else state, source)
    made, _ = converted(source, weights, component="bigvgan_16k")
    assert set(made) == set(plain)
    for name, tensor in plain.items():
        torch.testing.assert_close(made[name], tensor, rtol=1e-6, atol=1e-7)


def test_a_folded_vocoder_is_taken_as_it_is(tiny, tmp_path, weights):
    plain, source = BigVGAN(SMALL_VOCODER).state_dict(), tmp_path / "folded.pt"
    torch.save({"generator": plain}, source)
    made, info = converted(source, weights)
    assert info.component == "bigvgan_16k"
    assert all(torch.equal(made[name], plain[name]) for name in plain)


def test_clip_takes_its_scale_as_a_number_or_a_list_of_one(tmp_path, weights, monkeypatch):
    monkeypatch.setattr(layouts, "_clip", lambda: {"logit_scale": (), "visual.proj": (2, 3)})
    layouts.layouts.cache_clear()
    source = tmp_path / "open_clip_pytorch_model.bin"
    torch.save({"logit_scale": torch.tensor([4.6]), "visual.proj": torch.ones(2, 3)}, source)
    made, _ = converted(source, weights, component="clip_dfn5b_h14_378")
    layouts.layouts.cache_clear()
    assert made["logit_scale"].shape == ()


def test_clip_is_found_under_either_of_its_published_names(weights, monkeypatch):
    monkeypatch.setattr(layouts, "_clip", lambda: {"logit_scale": ()})
    layouts.layouts.cache_clear()
    save_file({"logit_scale": torch.tensor(1.0)}, weights / "open_clip_model.safetensors")
    assert float(read_tensors(ensure_component("clip_dfn5b_h14_378", weights))["logit_scale"]) == 1.0
    torch.save({"logit_scale": torch.tensor(2.0)}, weights / "open_clip_pytorch_model.bin")
    assert float(read_tensors(ensure_component("clip_dfn5b_h14_378", weights))["logit_scale"]) == 2.0
    layouts.layouts.cache_clear()


def test_the_same_bytes_are_not_converted_twice(tiny, tmp_path, weights):
    source = weights / "mmaudio_small_16k.pth"
    torch.save(official.network_tensors(), source)
    path = ensure_component("mmaudio_small_16k", weights)
    before = path.stat().st_mtime_ns
    assert ensure_component("mmaudio_small_16k", weights) == path
    assert path.stat().st_mtime_ns == before
    torch.save(official.network_tensors(seed=1), source)
    ensure_component("mmaudio_small_16k", weights)
    assert read_component_info(path).sha256 == Digests.of(source).sha256
    source.unlink()
    assert ensure_component("mmaudio_small_16k", weights) == path
    assert ensure_component("vae_16k", weights) is None


def test_progress_ends_at_the_size_of_the_values(tiny, tmp_path, weights):
    tensors, seen = official.network_tensors(), []
    torch.save(tensors, tmp_path / "net.pth")
    convert_file(tmp_path / "net.pth", weights, progress=lambda done, total: seen.append((done, total)))
    size = 4 * sum(t.numel() for t in tensors.values())
    assert seen[-1] == (size, size)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


# --- what is refused, in one line and leaving nothing behind ---------------------------------------------------------


class Payload:
    """Runs a command when unpickled by a reader that runs code."""

    def __init__(self, flag):
        self.flag = flag

    def __reduce__(self):
        return os.system, (f"touch {self.flag}",)


def refused(source, weights, match, **options):
    """Converting fails with one line that names the file; the weights folder stays empty."""
    with pytest.raises(WeightsError, match=match) as caught:
        convert_file(source, weights, **options)
    assert "\n" not in str(caught.value)
    assert source.name in str(caught.value)
    assert list(weights.iterdir()) == []
    return str(caught.value)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_neither_run_nor_loaded(tiny, tmp_path, weights, zipped):
    flag = tmp_path / "flag"
    content = official.network_tensors() | {"latent_mean": Payload(flag)}
    torch.save(content, tmp_path / "bad.pth", _use_new_zipfile_serialization=zipped)
    torch.load(tmp_path / "bad.pth", weights_only=False)
    assert flag.exists()  # the payload works where code is allowed
    flag.unlink()
    refused(tmp_path / "bad.pth", weights, r"asks for code \(posix.system\), not only for tensors: it was not loaded")
    assert not flag.exists()


def test_a_bare_pickle_is_not_run(tmp_path, weights):
    flag = tmp_path / "flag"
    (tmp_path / "bad.bin").write_bytes(pickle.dumps({"a": Payload(flag)}))
    refused(tmp_path / "bad.bin", weights, "not a PyTorch checkpoint|asks for code")
    assert not flag.exists()


def test_damaged_files_are_named(tiny, tmp_path, weights):
    torch.save(official.network_tensors(), tmp_path / "whole.pth")
    content = (tmp_path / "whole.pth").read_bytes()
    for name, part in {
        "half.pth": content[: len(content) // 2],
        "start.pth": content[:4],
        "text.pth": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "page.pth": b"<!DOCTYPE html><html></html>" * 20,
        "noise.pth": bytes(range(256)) * 20,
    }.items():
        (tmp_path / name).write_bytes(part)
        refused(tmp_path / name, weights, "PyTorch checkpoint")
    torch.save(official.network_tensors(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "old.pth").write_bytes((tmp_path / "old.pth").read_bytes()[:-100])
    refused(tmp_path / "old.pth", weights, "damaged or cut off")
    save_file(official.network_tensors(), tmp_path / "whole.safetensors")
    (tmp_path / "half.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:-100])
    refused(tmp_path / "half.safetensors", weights, "cannot read weights")


def test_what_is_not_a_file_of_tensors_is_named(tmp_path, weights):
    refused(tmp_path / "nowhere.pth", weights, "is not there")
    (tmp_path / "folder.pth").mkdir()
    refused(tmp_path / "folder.pth", weights, "is not a file")
    (tmp_path / "empty.pth").touch()
    refused(tmp_path / "empty.pth", weights, r"is empty \(0 bytes\)")
    with zipfile.ZipFile(tmp_path / "zip.pth", "w") as archive:
        archive.writestr("notes.txt", "nothing")
    refused(tmp_path / "zip.pth", weights, "not a PyTorch checkpoint")
    with tarfile.open(tmp_path / "tar.pth", "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            entry = tarfile.TarInfo(name)
            entry.size = len(pickle.dumps({}))
            archive.addfile(entry, io.BytesIO(pickle.dumps({})))
    refused(tmp_path / "tar.pth", weights, "archive of an old kind")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "program.pt")
    refused(tmp_path / "program.pt", weights, "is a program")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ([torch.zeros(2)], "holds a list, not a dictionary"),
        (torch.zeros(2), "holds a Tensor, not a dictionary"),
        ({}, "holds no tensors"),
        (
            {"model": {"a": torch.zeros(2)}, "step": 3},
            "under model, step there is something else; it may be a training",
        ),
        ({1: torch.zeros(2)}, "under 1 there is something else"),
        ({"a": torch.zeros(2, dtype=torch.int64)}, r"1 tensors that are not plain floating-point numbers: a int64"),
        ({"a": torch.zeros(2, dtype=torch.complex64)}, "a complex64"),
        ({"a": torch.zeros(2).to_sparse()}, "not plain floating-point numbers"),
        ({"a": torch.zeros(2)}, "none of the known components; name one with --component"),
    ],
)
def test_other_contents_are_named(tmp_path, weights, content, match):
    torch.save(content, tmp_path / "x.pth")
    refused(tmp_path / "x.pth", weights, match)


def test_the_variant_that_fits_is_named(tmp_path, weights):
    for component, other in (
        ("mmaudio_medium_44k", "mmaudio_large_44k"),
        ("mmaudio_large_44k_v2", "mmaudio_large_44k"),
        ("synchformer", "vae_16k"),
    ):
        torch.save(official.full_size(component), tmp_path / "x.pth")
        refused(tmp_path / "x.pth", weights, f"holds {component}, not {other}$", component=other)


def test_names_that_do_not_fit_are_counted_and_a_few_listed(tiny, tmp_path, weights):
    tensors = {f"module.{name}": tensor for name, tensor in official.network_tensors().items()}
    torch.save(tensors, tmp_path / "x.pth")
    told = refused(tmp_path / "x.pth", weights, "does not fit", component="mmaudio_small_16k")
    count = len(tensors)
    assert f"{count} missing (" in told
    assert f"{count} unexpected (" in told
    assert told.count(f"and {count - 8} more") == 2
    tensors = official.network_tensors()
    tensors["clip_cond_proj.bias"] = torch.zeros(3)
    del tensors["latent_mean"]
    torch.save(tensors, tmp_path / "x.pth")
    refused(
        tmp_path / "x.pth",
        weights,
        r"1 missing \(latent_mean\); 1 of another shape \(clip_cond_proj.bias \(3,\) instead of \(64,\)\)$",
        component="mmaudio_small_16k",
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_no_numbers_are_refused(tiny, tmp_path, weights, value):
    tensors = official.network_tensors()
    tensors["final_layer.conv.weight"][0, 0, 0] = value
    torch.save(tensors, tmp_path / "x.pth")
    refused(tmp_path / "x.pth", weights, r"final_layer.conv.weight holds NaN or infinity")


@pytest.mark.parametrize(
    ("name", "value"), [("latent_mean", float("nan")), ("latent_std", float("nan")), ("latent_std", 0.0)]
)
def test_a_network_without_latent_statistics_is_refused(tiny, tmp_path, weights, name, value):
    tensors = official.network_tensors()
    tensors[name].fill_(value)
    torch.save(tensors, tmp_path / "x.pth")
    refused(tmp_path / "x.pth", weights, "latent_mean or latent_std is not set")


def test_strict_digest_refuses_what_is_not_published(tiny, tmp_path, weights):
    torch.save(official.network_tensors(), tmp_path / "x.pth")
    refused(tmp_path / "x.pth", weights, "its md5 is .* published is af93cde404179f58", strict_digest=True)


def test_files_of_another_origin_are_not_replaced(tiny, tmp_path, weights):
    target = weights / "mmaudio_small_16k.safetensors"
    save_file(official.network_tensors(), target)
    before = target.read_bytes()
    with pytest.raises(WeightsError, match="has the path of the component to write; move it"):
        convert_file(target, weights)
    torch.save(official.network_tensors(), tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="is not a component made by mf-convert; move it"):
        convert_file(tmp_path / "x.pth", weights)
    assert target.read_bytes() == before
    assert [p.name for p in weights.iterdir()] == [target.name]


def test_unknown_components_are_refused_with_the_known_ones(tmp_path, weights):
    torch.save({"a": torch.zeros(2)}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="unknown component 'vae'; choose one of mmaudio_small_16k, "):
        convert_file(tmp_path / "x.pth", weights, component="vae")


# --- writing ---------------------------------------------------------------------------------------------------------


def test_components_are_what_safetensors_itself_would_write(tiny, tmp_path, weights):
    """Strided, scalar and empty tensors included; the library reads back the same values."""
    tensors = {
        "b": torch.arange(12.0).reshape(3, 4).T,
        "a": torch.tensor(2.5),
        "c": torch.zeros(0, 3),
        "ü": torch.ones(1),
    }
    info = read_component_info(convert_file(_network(tmp_path), weights))
    write_component(weights / "x.safetensors", tensors, info)
    made, kept = read_tensors(weights / "x.safetensors"), read_component_info(weights / "x.safetensors")
    assert kept == info
    assert {name: tuple(t.shape) for name, t in made.items()} == {n: tuple(t.shape) for n, t in tensors.items()}
    assert all(torch.equal(made[name], tensors[name]) for name in tensors)


def test_values_stay_on_disk_until_they_are_used(tmp_path):
    """A checkpoint that claims a terabyte out of one number is read for its shapes alone."""
    torch.save({"a": torch.zeros(1).expand(500_000, 500_000)}, tmp_path / "x.pth")
    assert read_checkpoint(tmp_path / "x.pth")["a"].shape == (500_000, 500_000)


def test_more_numbers_than_a_file_has_are_not_written_out(tmp_path, weights):
    shapes = layouts.layouts("vae_16k")[0]
    torch.save({n: torch.zeros(()).expand(s) for n, s in shapes.items()}, tmp_path / "x.pth")
    refused(tmp_path / "x.pth", weights, "fewer numbers than its tensors claim; repeated are those of")
    same = torch.zeros(100_000)
    torch.save({str(k): same for k in range(20)}, tmp_path / "y.pth")
    with pytest.raises(WeightsError, match="its tensors claim 8,000,000"):
        check_volume(tmp_path / "y.pth", read_checkpoint(tmp_path / "y.pth"))
    torch.save({"a": same, "tied": same}, tmp_path / "z.pth")
    check_volume(tmp_path / "z.pth", read_checkpoint(tmp_path / "z.pth"))


class Bytes:
    """Pickled as a call that makes many bytes out of a number."""

    def __reduce__(self):
        return bytearray, (3 << 30,)


def within_256_mib(work):
    """Do something with at most 256 MiB of address space more than now."""
    before = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (before + (256 << 20), limits[1]))
    try:
        work()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_call_that_makes_gigabytes_is_not_made(tmp_path, weights, zipped):
    torch.save({"w": Bytes()}, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    assert (tmp_path / "x.pth").stat().st_size < 2000
    within_256_mib(lambda: refused(tmp_path / "x.pth", weights, r"asks for code \(\w+\.bytearray\)"))


def test_an_archive_that_unpacks_to_more_than_it_has_is_not_unpacked(tmp_path, weights):
    with zipfile.ZipFile(tmp_path / "x.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("archive/data.pkl", "w", force_zip64=True) as stream:
            for _ in range(100):
                stream.write(bytes(1 << 20))
        archive.writestr("archive/version", "3")
    within_256_mib(
        lambda: refused(tmp_path / "x.pth", weights, "archive/data.pkl is compressed, which PyTorch never does")
    )


def test_a_listing_is_not_longer_than_tensors_need(tmp_path, weights):
    torch.save({"w" * (17 << 20): torch.zeros(1)}, tmp_path / "x.pth")
    refused(tmp_path / "x.pth", weights, "listing of tensors is longer than 16 MiB")
    (tmp_path / "y.pth").write_bytes(b"\x80\x02X" + (2**31 - 1).to_bytes(4, "little") + b"a")
    within_256_mib(lambda: refused(tmp_path / "y.pth", weights, "longer than 16 MiB"))


def test_arrays_are_encoded_once_where_they_are_expected(tmp_path):
    """A text of 5 MB that is encoded over and over: 100 bytes of pickle for every 5 MB in memory."""
    text = b"X" + (5_000_000).to_bytes(4, "little") + b"a" * 5_000_000 + b"q\x01X\x06\x00\x00\x00latin1q\x02"
    call = b"c_codecs\nencode\nq\x00(h\x01h\x02tR"
    again = b"h\x00(h\x01h\x02tR"
    pickled = b"\x80\x02](" + text + call + 100 * again + b"e."
    for name, content in (("once", b"\x80\x02](" + text + call + b"e."), ("often", pickled)):
        with zipfile.ZipFile(tmp_path / f"{name}.pth", "w") as archive:
            archive.writestr("archive/data.pkl", content)
            archive.writestr("archive/version", "3")
    with pytest.raises(WeightsError, match=r"asks for code \(_codecs.encode\)"):
        load_untrusted(tmp_path / "once.pth")
    with torch.serialization.safe_globals([(Bytes, "numpy.ndarray")]):
        assert len(load_untrusted(tmp_path / "once.pth")) == 3
        with pytest.raises(WeightsError, match="longer than 256 MiB"):
            load_untrusted(tmp_path / "often.pth")


def test_tensors_without_values_are_refused(tmp_path, weights):
    shapes = layouts.layouts("vae_16k")[0]
    torch.save({n: torch.empty(s, device="meta") for n, s in shapes.items()}, tmp_path / "meta.pth")
    refused(tmp_path / "meta.pth", weights, "not plain floating-point numbers.*meta_tensor")
    torch.save({"w": torch.sparse_coo_tensor([[0], [0]], [1.0], (10**9, 10**9))}, tmp_path / "sparse.pth")
    refused(tmp_path / "sparse.pth", weights, "not plain floating-point numbers.*sparse")


def _network(folder):
    torch.save(official.network_tensors(), folder / "net.pth")
    return folder / "net.pth"


def test_the_converted_file_is_recorded_and_damage_is_noticed(tiny, tmp_path, weights):
    torch.save(official.network_tensors(), tmp_path / "net.pth")
    made = convert_file(tmp_path / "net.pth", weights)
    assert check_digests(weights) == []
    assert set(read_digests(weights)) == {made.name}
    content = bytearray(made.read_bytes())
    content[-2] ^= 4
    made.write_bytes(content)
    with pytest.raises(WeightsError, match=r"is damaged: its SHA-256 is not the recorded one: restore the file"):
        read_tensors(made)


def test_of_two_conversions_at_once_the_second_is_refused(tiny, tmp_path, weights):
    torch.save(official.network_tensors(), tmp_path / "net.pth")
    with FolderLock(weights), pytest.raises(LockedError, match="the folder of components is being written by process"):
        convert_file(tmp_path / "net.pth", weights)
    assert list(weights.iterdir()) == []
    made = convert_file(tmp_path / "net.pth", weights)
    with FolderLock(weights):
        assert convert_file(tmp_path / "net.pth", weights) == made  # nothing to write
