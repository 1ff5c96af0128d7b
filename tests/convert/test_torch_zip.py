"""The reader of torch files, on one that torch 2.14 wrote and on some that nobody should.

``official_tiny.pth`` has the entries and keys of the released CRATE's checkpoints. It was made by

    import torch
    from torch import nn

    torch.manual_seed(0)
    d, q, classes = 8, 12, 3
    attention = nn.Module()
    attention.norm, attention.fn = nn.LayerNorm(d), nn.Module()
    attention.fn.qkv = nn.Linear(d, d, bias=False)
    attention.fn.to_out = nn.Sequential(nn.Linear(d, d))
    ista = nn.Module()
    ista.norm, ista.fn = nn.LayerNorm(d), nn.Module()
    ista.fn.weight = nn.Parameter(torch.randn(d, d))
    model = nn.Module()
    model.pos_embedding = nn.Parameter(torch.randn(1, 5, d))
    model.cls_token = nn.Parameter(torch.randn(1, 1, d))
    model.to_patch_embedding = nn.Sequential(
        nn.Identity(), nn.LayerNorm(q), nn.Linear(q, d), nn.LayerNorm(d)
    )
    model.transformer = nn.Module()
    model.transformer.layers = nn.ModuleList([nn.ModuleList([attention, ista])])
    model.mlp_head = nn.Sequential(nn.LayerNorm(d), nn.Linear(d, classes))
    model = nn.DataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5)
    sum(p.square().sum() for p in model.parameters()).backward()
    optimizer.step()
    torch.save(
        {
            "epoch": 1, "arch": "CRATE_tiny", "state_dict": model.state_dict(),
            "best_acc1": torch.tensor(12.5), "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
        },
        "official_tiny.pth",
    )
"""

import io
import pathlib
import pickle
import zipfile
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest

from crate_jax import convert
from crate_jax.config import ConfigError
from crate_jax.convert import torch_zip
from tests.convert import official

TINY = pathlib.Path(__file__).parent / "official_tiny.pth"


class _Global:
    """Pickles as the bare name of a global, or as a call of it."""

    def __init__(self, module, name):
        self.module, self.name = module, name

    def __call__(self, *args):
        return _Call(self, args)


class _Call:
    def __init__(self, function, args):
        self.function, self.args = function, args


class _Pickler(pickle._Pickler):
    """Writes what torch writes, and names whatever it is told to, without importing it."""

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, _Global):
            self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, _Call):
            self.save(obj.function)
            self.save(obj.args)
            self.write(pickle.REDUCE)
        elif isinstance(obj, _Persistent):
            self.save(obj.pid)
            self.write(pickle.BINPERSID)
        else:
            super().save(obj, save_persistent_id)


class _Persistent:
    def __init__(self, *pid):
        self.pid = pid


REBUILD = _Global("torch._utils", "_rebuild_tensor_v2")


def _tensor(key, kind, offset, shape, strides):
    storage = _Persistent("storage", _Global("torch", kind), key, "cpu", 0)
    return REBUILD(storage, offset, shape, strides, False, OrderedDict())


def _write(path, content, storages=None, byteorder=b"little"):
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=2).dump(content)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("any/data.pkl", buffer.getvalue())
        archive.writestr("any/byteorder", byteorder)
        for key, array in (storages or {}).items():
            archive.writestr(f"any/data/{key}", array.tobytes())
    return path


def test_a_training_checkpoint_of_torch(x64):
    state = {name.removeprefix("module."): a for name, a in torch_zip.read(TINY).items()}
    assert len(state) == 20 and all(a.dtype == np.float32 for a in state.values())
    module, variables = convert.load(TINY, family="crate", heads=2, eta=0.1, lmbda=0.1)
    assert (module.width, module.depth, module.patch, module.num_classes) == (8, 1, 2, 3)
    image = np.random.default_rng(0).normal(size=(2, 3, 4, 4))
    double = {name: a.astype(np.float64) for name, a in state.items()}
    want = official.crate_logits(double, image, heads=2, patch=2)
    got = module.apply(variables, image.transpose(0, 2, 3, 1))
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_views_offsets_and_dtypes(tmp_path, wrapper):
    memory = np.arange(24, dtype=np.float32)
    half = np.array([1.5, 2.5], ml_dtypes.bfloat16)
    state = OrderedDict(
        transposed=_tensor("0", "FloatStorage", 0, (6, 4), (1, 6)),
        cut=_tensor("0", "FloatStorage", 8, (3, 4), (6, 1)),
        scalar=_tensor("0", "FloatStorage", 5, (), ()),
        empty=_tensor("0", "FloatStorage", 0, (0, 3), (3, 1)),
        parameter=_Global("torch._utils", "_rebuild_parameter")(
            _tensor("1", "BFloat16Storage", 0, (2,), (1,)), True, OrderedDict()
        ),
        number=3,
    )
    path = _write(tmp_path / "x.pth", {wrapper: state} if wrapper else state, {0: memory, 1: half})
    got = torch_zip.read(path)
    assert set(got) == {"transposed", "cut", "scalar", "empty", "parameter"}
    np.testing.assert_array_equal(got["transposed"], memory.reshape(4, 6).T)
    np.testing.assert_array_equal(got["cut"], memory.reshape(4, 6)[1:, 2:])
    assert got["scalar"] == 5 and got["empty"].shape == (0, 3)
    assert got["parameter"].dtype == half.dtype
    np.testing.assert_array_equal(got["parameter"], half)


def test_the_other_byte_order(tmp_path):
    memory = np.arange(4.0)
    state = {"a": _tensor("0", "DoubleStorage", 0, (4,), (1,))}
    path = _write(tmp_path / "x.pth", state, {0: memory.astype(">f8")}, byteorder=b"big")
    np.testing.assert_array_equal(torch_zip.read(path)["a"], memory)


@pytest.mark.parametrize(
    "module, name", [("os", "system"), ("posix", "system"), ("builtins", "exec"), ("torch", "load")]
)
def test_nothing_in_a_pickle_is_executed(tmp_path, module, name):
    witness = tmp_path / "witness"
    order = f"touch {witness}" if name == "system" else f"open({str(witness)!r}, 'w')"
    state = {
        "state_dict": {"a": _tensor("0", "DoubleStorage", 0, (4,), (1,))},
        "optimizer": _Global(module, name)(order),
    }
    path = _write(tmp_path / "x.pth", state, {0: np.arange(4.0)})
    np.testing.assert_array_equal(torch_zip.read(path)["a"], np.arange(4.0))
    assert not witness.exists()


def test_python_objects_pass_by(tmp_path):
    scheduler = _Global("torch.optim.lr_scheduler", "LambdaLR")
    buffer = (
        b"\x80\x02}(X\x09\x00\x00\x00schedulerc" + b"torch.optim\nSched\n" + b")\x81}X\x01\x00\x00"
        b"\x00aK\x01sbX\x01\x00\x00\x00lcmy\nList\n)R(K\x01K\x02e"
        b"X\x01\x00\x00\x00dcmy\nDict\n)R(K\x01K\x02uu."
    )  # an object with state, a list that is appended to, a dict that is filled: all unknown
    path = _write(tmp_path / "x.pth", {"s": scheduler(1, 2)})
    assert torch_zip.read(path) == {}
    with zipfile.ZipFile(tmp_path / "y.pth", "w") as archive:
        archive.writestr("any/data.pkl", buffer)
    assert torch_zip.read(tmp_path / "y.pth") == {}


@pytest.mark.parametrize(
    "offset, shape, strides", [(0, (5,), (1,)), (3, (2,), (1,)), (0, (2,), (-1,)), (-1, (2,), (1,))]
)
def test_a_view_beyond_its_storage(tmp_path, offset, shape, strides):
    state = {"a": _tensor("0", "DoubleStorage", offset, shape, strides)}
    path = _write(tmp_path / "x.pth", state, {0: np.arange(4.0)})
    with pytest.raises(ConfigError, match="reaches beyond its storage"):
        convert.load(path, family="crate")


def test_formats_that_are_not_read(tmp_path):
    old = tmp_path / "x.pth"
    old.write_bytes(pickle.dumps({"a": 1}, protocol=2))
    with pytest.raises(ConfigError, match="before version 1.6.*torch.save"):
        torch_zip.read(old)
    with pytest.raises(ConfigError, match="no state dict"):
        torch_zip.read(_write(tmp_path / "y.pth", [1, 2]))
