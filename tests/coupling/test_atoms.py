import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gossamer.coupling.atoms import Atoms


@given(st.integers(2, 30), st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), max_size=40))
def test_classes_are_those_of_a_plain_search(count, pairs):
    pairs = [(a, b) for a, b in pairs if a <= count and b <= count]
    atoms = Atoms()
    atoms.fresh(count, "x")
    for a, b in pairs:
        atoms.merge(np.array([a]), np.array([b]))
    neighbours = {n: {n} for n in range(1, count + 1)}
    for _ in range(count):
        for a, b in pairs:
            union = neighbours[a] | neighbours[b]
            for member in union:
                neighbours[member] = union
    roots = atoms.find(np.arange(count + 1))
    assert roots[0] == 0
    for n in range(1, count + 1):
        assert roots[n] == min(neighbours[n])


def test_merging_in_one_call_equals_one_by_one():
    generator = np.random.default_rng(0)
    left, right = generator.integers(1, 50, (2, 60))
    together, apart = Atoms(), Atoms()
    for atoms in (together, apart):
        atoms.fresh(50, "x")
    together.merge(left, right)
    for a, b in zip(left, right, strict=True):
        apart.merge(np.array([a]), np.array([b]))
    assert np.array_equal(together.find(np.arange(51)), apart.find(np.arange(51)))


def test_zero_never_merges():
    atoms = Atoms()
    made = atoms.fresh(3, "x")
    atoms.merge(np.zeros(3, np.int64), made)
    assert np.array_equal(atoms.find(made), made)


def test_frozen_reason_holds_for_the_whole_class():
    atoms = Atoms()
    made = atoms.fresh(4, "x")
    atoms.freeze(made[3:], "because")
    atoms.merge(made[:1], made[3:])
    assert atoms.frozen() == {int(atoms.find(made[:1])[0]): "because"}
