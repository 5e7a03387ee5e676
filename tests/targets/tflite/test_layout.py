"""Reading stored numbers in another order must be what torch does with the value itself."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gossamer.targets.tflite.layout import channels_last, identity, permuted, reshaped, same_memory, stored, without


def lay(value, order):
    return np.ascontiguousarray(value.transpose(order))


def read(memory, shape, order):
    """The value that memory holds in this order."""
    return memory.reshape(stored(shape, order)).transpose(np.argsort(order))


@st.composite
def laid_values(draw):
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    order = tuple(draw(st.permutations(range(len(shape)))))
    return np.arange(np.prod(shape)).reshape(shape), order


@st.composite
def new_shapes(draw, size):
    """Any factorisation of a size."""
    shape = []
    while size > 1:
        factor = draw(st.sampled_from([n for n in range(1, size + 1) if size % n == 0]))
        shape.append(factor)
        size //= factor
        if len(shape) > 5:
            shape.append(size)
            break
    return tuple(shape) or (1,)


@given(laid_values(), st.data())
def test_a_reshape_in_memory_is_the_reshape_of_the_value(laid, data):
    value, order = laid
    shape = data.draw(new_shapes(value.size))
    found = reshaped(value.shape, shape, order)
    if found is None:
        assert order != identity(value.ndim)
    else:
        assert sorted(found) == list(range(len(shape)))
        np.testing.assert_array_equal(read(lay(value, order).reshape(-1), shape, found), value.reshape(shape))


def test_images_become_tokens_without_moving():
    order = reshaped((7919, 8, 4, 4), (7919, 8, 16), channels_last(4))
    assert order == (0, 2, 1)  # tokens, then channels: what a transformer reads
    assert permuted(order, (0, 2, 1)) == identity(3)
    assert reshaped((7919, 8, 4, 4), (7919, 128), channels_last(4)) is None


@given(laid_values(), st.data())
def test_a_permutation_moves_nothing(laid, data):
    value, order = laid
    dims = data.draw(st.permutations(range(value.ndim)))
    moved = value.transpose(dims)
    np.testing.assert_array_equal(read(lay(value, order).reshape(-1), moved.shape, permuted(order, dims)), moved)


@given(laid_values(), st.data())
def test_axes_of_size_one_are_free(laid, data):
    value, order = laid
    other = tuple(data.draw(st.permutations(range(value.ndim))))
    if same_memory(value.shape, order, other):
        np.testing.assert_array_equal(lay(value, order).reshape(-1), lay(value, other).reshape(-1))


@given(laid_values(), st.data())
def test_axes_that_are_gone(laid, data):
    value, order = laid
    axis = data.draw(st.integers(0, value.ndim - 1))
    expected = value.sum(axis)
    got = lay(value, order).sum(order.index(axis))
    np.testing.assert_array_equal(read(got.reshape(-1), expected.shape, without(order, (axis,))) if expected.ndim else got, expected)
