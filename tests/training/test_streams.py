"""Named streams: what one purpose draws moves no other; the numbers are the same on every machine, for ever."""

import hashlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lnl.training.streams import Streams, digest


def draw(streams, name, count=8):
    return torch.rand(count, generator=streams[name]).tolist()


@given(st.integers(0, 1000), st.text(max_size=20))
def test_a_replicate_and_a_name_give_the_same_numbers(replicate, name):
    assert draw(Streams(replicate), name) == draw(Streams(replicate), name)
    assert draw(Streams(replicate), name) != draw(Streams(replicate), name + "'")
    assert draw(Streams(replicate), name) != draw(Streams(replicate + 1), name)


def test_the_seeds_of_stored_results_never_change():
    """`printf 0/noise | sha256sum`: the first eight bytes as a little-endian number, halved."""
    assert Streams(0).seed("noise") == int.from_bytes(bytes.fromhex("8e53f176b2d0581f"), "little") // 2
    assert Streams(3).seed("split/test") == int.from_bytes(bytes.fromhex("0edfa8443ce4873b"), "little") // 2
    assert draw(Streams(0), "noise", 3) == pytest.approx([0.7096465, 0.8296631, 0.3234088], abs=1e-6)


def test_seeds_of_nearby_names_and_replicates_differ():
    names = ["noise", "noise/validation", "split", "split/test", "order", "order/unlabelled", "init", "1", "11", ""]
    seeds = {Streams(replicate).seed(name) for replicate in range(100) for name in names}
    assert len(seeds) == 100 * len(names)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_drawing_more_from_one_stream_moves_no_other():
    quiet, busy = Streams(0), Streams(0)
    draw(busy, "augment", 1000)
    busy["mixup"]  # made but not drawn from
    assert draw(quiet, "order") == draw(busy, "order")
    draw(busy, "augment", 1)
    assert draw(quiet, "order") == draw(busy, "order")
    assert draw(quiet, "order") != draw(quiet, "order"), "a stream goes on"


def test_no_stream_touches_the_global_generator():
    torch.manual_seed(5)
    expected = torch.rand(3).tolist()
    torch.manual_seed(5)
    draw(Streams(0), "order")
    assert torch.rand(3).tolist() == expected


def test_state_goes_and_comes_back(tmp_path):
    streams = Streams(0)
    draw(streams, "order"), draw(streams, "augment", 5)
    torch.save(streams.state_dict(), tmp_path / "state.pt")
    expected = {name: draw(streams, name) for name in ("order", "augment", "mixup")}

    for restored in (Streams(0), streams):
        restored.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        assert {name: draw(restored, name) for name in ("order", "augment")} == {
            name: expected[name] for name in ("order", "augment")
        }
    fresh = Streams(0)
    fresh.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert draw(fresh, "mixup") == expected["mixup"], (
        "a stream first used after the checkpoint starts from its beginning"
    )


def test_a_restored_state_forgets_what_was_drawn_since():
    """Also of streams that did not exist yet when the state was taken."""
    streams = Streams(0)
    expected = draw(Streams(0), "mixup")
    state = streams.state_dict()
    draw(streams, "mixup")
    streams.load_state_dict(state)
    assert draw(streams, "mixup") == expected


def test_initialise_is_a_stream_for_modules_and_leaves_the_global_generator_as_it_was():
    def weights(replicate, name, seed):
        torch.manual_seed(seed)
        with Streams(replicate).initialise(name):
            return nn.Linear(4, 3).weight.tolist()

    assert weights(0, "backbone", 1) == weights(0, "backbone", 2)
    assert weights(0, "backbone", 1) != weights(0, "projection", 1)
    assert weights(0, "backbone", 1) != weights(1, "backbone", 1)

    before = torch.get_rng_state()
    with Streams(0).initialise("backbone"):
        nn.Linear(4, 3)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(RuntimeError), Streams(0).initialise("backbone"):
        torch.rand(1)
        raise RuntimeError
    assert torch.equal(torch.get_rng_state(), before)


def test_initialise_does_not_move_the_stream_of_the_same_name():
    streams = Streams(0)
    with streams.initialise("backbone"):
        torch.rand(100)
    assert draw(streams, "init/backbone") == draw(Streams(0), "init/backbone")
    assert streams.state_dict().keys() == {"init/backbone"}


def test_a_digest_is_that_of_shape_type_and_bytes():
    tensor = torch.tensor([[1, 2], [3, 4]], dtype=torch.int64)
    expected = hashlib.sha256(b"(2, 2)torch.int64" + tensor.numpy().tobytes()).hexdigest()[:16]
    assert digest(tensor) == expected
    assert digest(tensor.t().contiguous().t()) == expected, "the layout in memory does not count"


def test_digests_tell_values_shapes_types_and_order_apart():
    ones = torch.ones(6)
    different = [
        (ones,),
        (torch.zeros(6),),
        (ones.view(2, 3),),
        (ones.view(3, 2),),
        (ones.double(),),
        (ones.to(torch.int32),),
        (ones.bool(),),
        (ones.bfloat16(),),
        (ones[:0],),
        (ones[:0].double(),),
        (ones, ones),
        (ones[:3], ones[3:]),
        (ones[3:], torch.zeros(3)),
        (torch.zeros(3), ones[3:]),
        (torch.tensor(1.0),),
        (torch.tensor(2.0),),
        (),
    ]
    assert len({digest(*tensors) for tensors in different}) == len(different)
    assert all(len(digest(*tensors)) == 16 for tensors in different)
