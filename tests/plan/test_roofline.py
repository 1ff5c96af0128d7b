import pytest

from crate_jax.plan.chips import CHIPS
from crate_jax.plan.collectives import Collective
from crate_jax.plan.roofline import Work, links, roofline, seconds

V5E, V5P, H100 = CHIPS["v5e"], CHIPS["v5p"], CHIPS["h100"]


def torus(*shape, slices=1):
    """Places of a slice's chips row by row."""
    places = [()]
    for size in shape:
        places = [(*p, i) for p in places for i in range(size)]
    return [(s, p) for s in range(slices) for p in places]


def test_a_ring_has_two_links_a_dimension_and_a_line_one():
    pod = torus(16, 16)
    assert links(pod[:16], V5E, (16, 16)) == 2  # one closed row
    assert links(pod[:8], V5E, (16, 16)) == 1  # half a row
    assert links(pod, V5E, (16, 16)) == 4
    assert links(torus(4, 4), V5E, (4, 4)) == 2  # no dimension of 4 closes on v5e
    assert links(torus(4, 4, 4), V5P, (4, 4, 4)) == 6


def test_an_all_reduce_over_a_closed_row_by_hand():
    whole = Collective("all-reduce", tuple(range(16)), 10**9, 3, asynchronous=False)
    within, across = seconds(whole, V5E, (16, 16), torus(16, 16))
    # 2 passes x 3 times x 1 GB x 15/16 out of every chip over 2 links of 50 GB/s
    assert within == pytest.approx(2 * 3 * 15 / 16 / 100) and across == 0
    gather = Collective("all-gather", tuple(range(16)), 10**9, 3, asynchronous=False)
    assert seconds(gather, V5E, (16, 16), torus(16, 16))[0] == pytest.approx(within / 2)


def test_between_slices_a_chip_sends_its_share_over_the_network():
    places = torus(16, 16, slices=2)
    pair = Collective("all-reduce", (0, 256), 10**9, 1, asynchronous=False)
    assert seconds(pair, V5E, (16, 16), places) == (0, pytest.approx(2 * 0.5 / 3.125))
    everyone = Collective("all-reduce", tuple(range(512)), 10**9, 1, asynchronous=False)
    within, across = seconds(everyone, V5E, (16, 16), places)
    assert within == pytest.approx(2 * 255 / 256 / 200)
    assert across == pytest.approx(2 * 0.5 / 256 / 3.125)


def test_gpus_of_one_node_share_a_switch():
    places = [(i // 8, ()) for i in range(16)]
    node = Collective("reduce-scatter", tuple(range(8)), 10**9, 1, asynchronous=False)
    assert seconds(node, H100, (16,), places) == (pytest.approx(7 / 8 / 450), 0)
    both = Collective("all-gather", tuple(range(16)), 10**9, 1, asynchronous=False)
    assert seconds(both, H100, (16,), places)[1] == pytest.approx(1 / 8 / 2 / 50)


def test_a_step_is_the_longer_of_compute_and_memory_and_what_they_do_not_hide():
    waits = Collective("all-reduce", tuple(range(256)), 10**8, 1, asynchronous=False)
    hidden = Collective("all-gather", tuple(range(256)), 10**9, 1, asynchronous=True)
    work = Work(flops=1.97e12, hbm_bytes=16.38e9, collectives=[waits, hidden])
    r = roofline(work, V5E, (16, 16), torus(16, 16))
    assert (r.compute, r.hbm) == (pytest.approx(0.01), pytest.approx(0.02))
    one = 2 * 1e8 * 255 / 256 / 200e9
    assert r.exposed == pytest.approx(one)  # 5 ms of gathering vanish under 20 ms of memory
    assert r.step == pytest.approx(0.02 + one) and r.bound == "HBM"
    longer = Collective("all-gather", tuple(range(256)), 10**10, 1, asynchronous=True)
    r = roofline(Work(1.97e12, 16.38e9, [longer]), V5E, (16, 16), torus(16, 16))
    assert r.exposed == pytest.approx(1e10 * 255 / 256 / 200e9 - 0.02)
    assert r.bound == "interconnect"
