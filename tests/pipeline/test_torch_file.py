"""The files in torch_files/ were written by PyTorch itself, see torch_files/make.py."""

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from pipeline import torch_file
from pipeline.errors import PipelineError
from tests.pipeline.checkpoints import Call, Global, legacy_file, tensor, zip_file

FILES = Path(__file__).parent / "torch_files"
FORMATS = ("zip.pth", "legacy.pth")


@pytest.mark.parametrize("name", FORMATS)
def test_reads_what_pytorch_wrote(name):
    expected = np.load(FILES / "expected.npz")
    state = torch_file.read(FILES / name)
    assert list(state) == list(expected)
    for key, array in state.items():
        assert array.dtype == expected[key].dtype, key
        np.testing.assert_array_equal(array, expected[key], err_msg=key)
        assert array.flags.owndata


@pytest.mark.parametrize("wrapper", torch_file.WRAPPERS)
def test_takes_a_state_dict_out_of_what_training_scripts_wrap_it_in(wrapper, tmp_path):
    names = {"module.conv.weight": tensor(), "module.fc.bias": tensor()}
    path = zip_file(tmp_path / "a.pth", {"epoch": 3, wrapper: names})
    assert list(torch_file.read(path)) == ["conv.weight", "fc.bias"]


def test_a_prefix_that_not_all_names_have_stays(tmp_path):
    path = zip_file(tmp_path / "a.pth", {"module.a": tensor(), "b": tensor()})
    assert list(torch_file.read(path)) == ["module.a", "b"]


@pytest.mark.parametrize("write", [zip_file, legacy_file])
@pytest.mark.parametrize(
    ("module", "name"),
    [("os", "system"), ("builtins", "eval"), ("torch._utils", "_rebuild_tensor"), ("x", "y.z")],
)
def test_names_of_anything_else_are_refused_and_not_called(write, module, name, tmp_path):
    executed = tmp_path / "executed"
    call = Call(Global(module, name), f"touch {executed}")
    path = write(tmp_path / "a.pth", {"conv.weight": call})
    with pytest.raises(PipelineError, match=rf"a\.pth names {module}\.{name}, .*state_dict"):
        torch_file.read(path)
    assert not executed.exists()


def test_sparse_tensors_are_refused_by_name():
    with pytest.raises(PipelineError, match="_rebuild_sparse_tensor"):
        torch_file.read(FILES / "sparse.pth")


@pytest.mark.parametrize(
    "window",
    [
        {"offset": 1},
        {"offset": -1},
        {"strides": (2,)},
        {"strides": (-1,)},
        {"shape": (-4,)},
        {"shape": (10**12,), "strides": (0,)},
        {"shape": (2, 2), "strides": (4, 1)},
        {"shape": (5,), "count": 5},
    ],
)
def test_a_tensor_stays_within_its_storage(window, tmp_path):
    path = zip_file(tmp_path / "a.pth", {"conv.weight": tensor(**window)})
    with pytest.raises(PipelineError, match=r"a\.pth has tensor 'conv\.weight' beyond"):
        torch_file.read(path)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({}, "holds no state dict"),
        ([1], "holds no state dict"),
        ({"epoch": 3, "w": tensor()}, "holds 'epoch', of type int"),
        ({"w": tensor(storage="QInt8Storage")}, r"names torch\.QInt8Storage"),
        ({"w": tensor(shape=("a",))}, "is damaged"),
        ({"w": ("persistent", "module", "Net", None, None, 1)}, "holds a module"),
        ({3: tensor()}, "is damaged"),
    ],
)
def test_other_contents_are_refused(value, reason, tmp_path):
    with pytest.raises(PipelineError, match=rf"a\.pth {reason}"):
        torch_file.read(zip_file(tmp_path / "a.pth", value))


def other_files(folder: Path) -> dict[str, str]:
    """Files that are no checkpoints, and what is said of each."""
    (folder / "empty").touch()
    (folder / "text").write_text("some words\n" * 100)
    (folder / "folder").mkdir()
    with zipfile.ZipFile(folder / "zip", "w") as archive:
        archive.writestr("a.txt", "a")
    with zipfile.ZipFile(folder / "compressed", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
    (folder / "big").write_bytes(
        b"".join(
            pickle.dumps(part, protocol=2)
            for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": False})
        )
    )
    return {
        "empty": "empty is not a PyTorch checkpoint",
        "text": "text is not a PyTorch checkpoint",
        "folder": "cannot read .*folder: Is a directory",
        "absent": "cannot read .*absent: No such file",
        "zip": "zip is a zip file but not one that torch.save wrote",
        "compressed": "compressed is compressed",
        "big": "big is of a big-endian machine",
    }


def test_other_files_are_named_with_the_reason(tmp_path):
    for name, reason in other_files(tmp_path).items():
        with pytest.raises(PipelineError, match=reason) as caught:
            torch_file.read(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_cut_anywhere_is_refused(name, tmp_path):
    whole = (FILES / name).read_bytes()
    path = tmp_path / "cut.pth"
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(PipelineError, match=r"cut\.pth") as caught:
            torch_file.read(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_file_is_refused_or_read_but_never_breaks(name, tmp_path):
    whole = (FILES / name).read_bytes()
    random = np.random.default_rng(1)
    path = tmp_path / "damaged.pth"
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[random.integers(len(whole))] = random.integers(256)
        path.write_bytes(damaged)
        try:
            torch_file.read(path)
        except PipelineError as error:
            assert "damaged.pth" in str(error)  # noqa: PT017
