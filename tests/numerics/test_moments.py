import pytest
import torch
import torch.nn.functional as F

from gossamer.numerics.moments import add_moments, moments_of, moments_of_patches
from gossamer.numerics.patches import as_columns, conv_patches, linear_patches

CASES = [
    # channels, out, kernel, stride, padding, dilation, groups
    (3, 4, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    (4, 4, (3, 3), (2, 2), (1, 1), (1, 1), 4),
    (6, 4, (5, 3), (2, 1), (2, 0), (1, 2), 2),
    (5, 7, (1, 1), (1, 1), (0, 0), (1, 1), 1),
]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("channels", "out", "kernel", "stride", "padding", "dilation", "groups"), CASES)
def test_weight_times_columns_is_the_convolution(channels, out, kernel, stride, padding, dilation, groups, channels_last):
    random = torch.Generator().manual_seed(0)
    x = torch.randn(2, channels, 9, 8, generator=random)
    weight = torch.randn(out, channels // groups, *kernel, generator=random)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    patches = conv_patches(x, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups, limit=10_000, generator=random)
    columns = as_columns(patches)
    expected = F.conv2d(x, weight, None, stride, padding, dilation, groups)  # (N, O, H, W)
    got = weight.reshape(groups, out // groups, -1) @ columns  # (G, O/G, N * positions)
    got = got.reshape(out, 2, -1).movedim(1, 0).reshape(expected.shape)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_one_and_three_axes():
    random = torch.Generator().manual_seed(0)
    for shape, kernel in (((2, 3, 11), (3,)), ((1, 2, 5, 4, 6), (2, 3, 2))):
        dims = len(kernel)
        x, weight = torch.randn(shape, generator=random), torch.randn(4, shape[1], *kernel, generator=random)
        one = (1,) * dims
        columns = as_columns(conv_patches(x, kernel, stride=one, padding=one, dilation=one, groups=1, limit=10_000, generator=random))
        expected = (F.conv1d if dims == 1 else F.conv3d)(x, weight, padding=1)
        got = (weight.flatten(1) @ columns[0]).reshape(4, shape[0], -1).movedim(1, 0).reshape(expected.shape)
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_a_sample_stays_within_its_limit():
    random = torch.Generator().manual_seed(0)
    x = torch.randn(4, 3, 30, 30, generator=random)
    one = (1, 1)
    patches = conv_patches(x, (3, 3), stride=one, padding=one, dilation=one, groups=1, limit=100, generator=random)
    assert patches.shape == (100, 9, 1, 3)
    assert as_columns(patches).shape == (1, 27, 100)
    assert linear_patches(torch.randn(50, 7), 20, random).shape == (20, 1, 1, 7)
    assert torch.equal(as_columns(linear_patches(x[0, 0], 100, random))[0].t(), x[0, 0])


def test_moments_in_parts_equal_moments_at_once():
    columns = torch.randn(2, 5, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = moments_of(columns, second=True)
    parts = add_moments(moments_of(columns[..., :13], second=True), moments_of(columns[..., 13:], second=True))
    torch.testing.assert_close(parts.mean, whole.mean)
    for group in range(2):
        torch.testing.assert_close(parts.covariance(centred=True)[group], torch.cov(columns[group], correction=0))
    torch.testing.assert_close(parts.covariance(centred=False), columns @ columns.transpose(1, 2) / 40)
    assert moments_of(columns, second=False).second is None
    assert add_moments(whole, moments_of(columns, second=False)).second is None


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize(("taps", "groups", "channels"), [(1, 1, 6), (9, 1, 6), (9, 5, 1), (4, 2, 3)])
def test_moments_of_patches_are_those_of_their_columns(taps, groups, channels, blocks):
    patches = torch.randn(20, taps, groups, channels, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    blocks = blocks if taps * channels % blocks == 0 else 1
    for second in (True, False):
        got = moments_of_patches(patches, second=second, blocks=blocks)
        expected = moments_of(as_columns(patches), second=second, blocks=blocks)
        torch.testing.assert_close(got.total, expected.total)
        torch.testing.assert_close(got.second, expected.second)
        assert got.count == expected.count == 20
