import numpy as np
import pytest
import torch

from lake.errors import BadInput
from transforms.models.inference import normalised
from transforms.models.nets import Architecture, UNet, folded, multiply_adds

TINY = Architecture(outputs=2, widths=(4, 6), encoder=(2, 1), decoder=(1,), pool_z=(2,))


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return UNet(TINY).eval()


def apply(net, em):
    with torch.inference_mode():
        return net(normalised(em[None]))[0].numpy()


def test_multiply_adds_are_those_counted_by_hand(net):
    # Half resolution in y and x: 8 x 8 x 8 = 512 places at the upper level, 64 at the lower.
    upper = 4 * 4 * 9 + 4 * 4 * 27 + 4 * 4 * 27 + 4 * 8
    lower = 4 * 6 * 27 + 6 * 4
    assert multiply_adds(net, (8, 16, 16)) == 512 * upper + 64 * lower


def test_multiply_adds_grow_with_the_volume_and_leave_the_model_as_it_was():
    net = UNet(TINY, training=True).train()
    assert multiply_adds(net, (8, 32, 16)) == 2 * multiply_adds(net, (8, 16, 16))
    assert net.training
    assert all(m.running_mean.abs().sum() == 0 for m in net.modules() if isinstance(m, torch.nn.BatchNorm3d))


def test_no_voxel_beyond_the_halo_reaches_a_result(net):
    rng = np.random.default_rng(0)
    em = rng.integers(0, 256, (24, 64, 64), dtype=np.uint8)
    z, y, x = TINY.halo
    core = (slice(z, z + TINY.stride[0]), slice(y, y + TINY.stride[1]), slice(x, x + TINY.stride[2]))
    near = (slice(0, core[0].stop + z), slice(0, core[1].stop + y), slice(0, core[2].stop + x))
    other = rng.integers(0, 256, em.shape, dtype=np.uint8)
    other[near] = em[near]
    inside = (slice(None), *core)
    assert np.array_equal(apply(net, em)[inside], apply(net, other)[inside])
    assert not np.array_equal(apply(net, em), apply(net, other))


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_the_halo_is_a_multiple_of_the_stride(levels):
    a = Architecture(
        outputs=1, widths=(4,) * levels, encoder=(2,) * levels, decoder=(1,) * (levels - 1), pool_z=(2,) * (levels - 1)
    )
    assert all(h % s == 0 and h > 0 for h, s in zip(a.halo, a.stride, strict=True))


def test_a_folded_network_computes_what_the_trained_one_does():
    torch.manual_seed(1)
    net = UNet(TINY, training=True).train()
    em = torch.randn(2, 1, 8, 32, 32)
    for _ in range(3):
        net(em)
    net.eval()
    with torch.inference_mode():
        before, after = net(em), folded(net)(em)
        assert torch.allclose(before, after, atol=1e-5)
        assert torch.allclose(before[:, :1], folded(net, 1)(em), atol=1e-5)
    assert not any(isinstance(m, torch.nn.BatchNorm3d) for m in folded(net).modules())


def test_an_architecture_comes_back_from_its_card_and_unknown_fields_are_refused():
    assert Architecture.from_json(TINY.to_json()) == TINY
    with pytest.raises(BadInput, match="dropout"):
        Architecture.from_json({**TINY.to_json(), "dropout": 0.5})
    with pytest.raises(BadInput, match="2 encoder"):
        Architecture(outputs=1, widths=(4, 4, 4), encoder=(1, 1))
