import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from crate_jax.plan import collectives, hlo

MESH = {"slice": 1, "data": 2, "fsdp": 4, "tensor": 1}

LOOP = """
HloModule jit_step, is_scheduled=true, num_partitions=8

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%body (p: (s32[], f32[1000], s32[])) -> (s32[], f32[1000], s32[]) {
  %p = (s32[]{:T(128)}, f32[1000]{0:T(1024)}, s32[]{:T(128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %i.copy = s32[]{:T(128)} copy(%i)
  %z = f32[1000]{0:T(1024)} get-tuple-element(%p), index=1
  %two = s32[]{:T(128)} get-tuple-element(%p), index=2
  %next = s32[]{:T(128)} add(%i.copy, %two)
  %all = f32[1000]{0:T(1024)} all-reduce(%z), channel_id=1, replica_groups=[4,2]<=[2,4]T(1,0), use_global_device_ids=true, to_apply=%add
  %work = f32[1000]{0:T(1024)} fusion(%all), kind=kLoop, calls=%double, backend_config={"window_config":{"estimated_cycles":"50"}}
  ROOT %t = (s32[]{:T(128)}, f32[1000]{0:T(1024)}, s32[]{:T(128)}) tuple(%next, %work, %two)
}

%double (q: f32[1000]) -> f32[1000] {
  %q = f32[1000]{0:T(1024)} parameter(0)
  ROOT %twice = f32[1000]{0:T(1024)} add(%q, %q)
}

%condition (c: (s32[], f32[1000], s32[])) -> pred[] {
  %limit = s32[]{:T(128)} constant(11)
  %c = (s32[]{:T(128)}, f32[1000]{0:T(1024)}, s32[]{:T(128)}) parameter(0)
  %j = s32[]{:T(128)} get-tuple-element(%c), index=0
  ROOT %less = pred[]{:T(512)} compare(%j, %limit), direction=LT
}

ENTRY %main (a: f32[1000]) -> f32[1000] {
  %a = f32[1000]{0:T(1024)} parameter(0)
  %one = s32[]{:T(128)} constant(1)
  %start = s32[]{:T(128)} copy(%one)
  %step = s32[]{:T(128)} constant(2)
  %in = (s32[]{:T(128)}, f32[1000]{0:T(1024)}, s32[]{:T(128)}) tuple(%start, %a, %step)
  %while.1 = (s32[]{:T(128)}, f32[1000]{0:T(1024)}, s32[]{:T(128)}) while(%in), condition=%condition, body=%body
  ROOT %out = f32[1000]{0:T(1024)} get-tuple-element(%while.1), index=1
}
"""  # noqa: E501

FUSED = """
HloModule jit_step, num_partitions=8

%start (p: bf16[8,16]) -> (bf16[8,16], bf16[32,16]) {
  %p = bf16[8,16]{1,0} parameter(0)
  %gather.1 = bf16[32,16]{1,0} all-gather(%p), channel_id=7, replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
  ROOT %begin = (bf16[8,16]{1,0}, bf16[32,16]{1,0}) custom-call(%gather.1), custom_call_target="AsyncCollectiveStart"
}

%done (q: bf16[8,16]) -> bf16[32,16] {
  %q = bf16[8,16]{1,0} parameter(0)
  %gather.2 = bf16[32,16]{1,0} all-gather(%q), channel_id=7, replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
  ROOT %end = bf16[32,16]{1,0} custom-call(%gather.2), custom_call_target="AsyncCollectiveDone"
}

%all-reduce-scatter.1 (r: f32[64,4]) -> f32[16,4] {
  %r = f32[64,4]{1,0} parameter(0)
  %reduce = f32[64,4]{1,0} all-reduce(%r), channel_id=8, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  %zero = s32[] constant(0)
  ROOT %slice = f32[16,4]{1,0} dynamic-slice(%reduce, %zero, %zero), dynamic_slice_sizes={16,4}
}

ENTRY %main (a: bf16[8,16], b: f32[64,4]) -> (bf16[32,16], f32[16,4]) {
  %a = bf16[8,16]{1,0} parameter(0)
  %b = f32[64,4]{1,0} parameter(1)
  %f.1 = (bf16[8,16]{1,0}, bf16[32,16]{1,0}) fusion(%a), kind=kCustom, calls=%start
  %g = bf16[8,16]{1,0} get-tuple-element(%f.1), index=0
  %f.2 = bf16[32,16]{1,0} fusion(%g), kind=kCustom, calls=%done
  %f.3 = f32[16,4]{1,0} fusion(%b), kind=kCustom, calls=%all-reduce-scatter.1
  %k = f32[16,4]{1,0} custom-call(%f.3), custom_call_target="tpu_custom_call"
  %ids = f32[16,4]{1,0} collective-permute(%k), channel_id=9, source_target_pairs={{0,0},{1,5},{5,1}}
  ROOT %t = (bf16[32,16]{1,0}, f32[16,4]{1,0}) tuple(%f.2, %ids)
}
"""  # noqa: E501


def test_a_loop_without_a_stated_count_is_counted_from_its_condition():
    module = hlo.Module(LOOP)
    assert module.times == {"main": 1, "body": 5}  # 1, 3, 5, 7, 9
    assert not module.unknown_loops
    (found,) = module.collectives
    assert found == collectives.Collective("all-reduce", (0, 4), 4000, 5, asynchronous=False)
    assert collectives.mesh_axes(found.devices, MESH) == ("data",)
    assert module.cycles == 5 * 50


def test_a_loop_whose_count_cannot_be_read_counts_once_and_is_named():
    module = hlo.Module(LOOP.replace("s32[]{:T(128)} constant(11)", "s32[]{:T(128)} rng()"))
    assert module.times["body"] == 1 and module.unknown_loops == ["while.1"]
    stated = LOOP.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"9"}}')
    assert hlo.Module(stated).times["body"] == 9


def test_collectives_that_the_compiler_cut_up_or_fused_count_once():
    module = hlo.Module(FUSED)
    gather, scatter, permute = module.collectives
    assert gather == collectives.Collective(
        "all-gather", (0, 1, 2, 3), 32 * 16 * 2, 1, asynchronous=True
    )
    assert scatter == collectives.Collective("reduce-scatter", (0, 1, 2, 3), 64 * 4 * 4, 1, False)
    assert permute.devices == (1, 5)
    assert [collectives.mesh_axes(c.devices, MESH) for c in module.collectives] == [
        ("fsdp",), ("fsdp",), ("data",),
    ]  # fmt: skip
    assert module.kernels == [hlo.Kernel("tpu_custom_call", 2 * 16 * 4 * 4, 1)]
    assert module.cycles is None


@pytest.mark.parametrize(
    "groups, devices",
    [
        ("{{0,2},{1,3}}", (0, 2)),
        ("[2,4]<=[8]", (0, 1, 2, 3)),
        ("[4,2]<=[2,4]T(1,0)", (0, 4)),
        ("mesh['a'=2,'b'=4] {'b'}", (0, 1, 2, 3)),
        ("mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a'}", (0, 1)),
        ("mesh['a'=2,'b'=4] {'a','b'}", tuple(range(8))),
        ("mesh['a'=8] {'a':(2)2}", (0, 2)),
    ],
)
def test_groups_in_every_notation(groups, devices):
    line = f"  %r = f32[4]{{0}} all-reduce(%x), replica_groups={groups}, to_apply=%add"
    assert collectives.first_group(hlo._parse(line).attributes) == devices


@pytest.mark.parametrize(
    "shape, size",
    [
        ("bf16[3,5]{1,0}", 30),
        ("bf16[3,5]{1,0:T(8,128)(2,1)}", 8 * 128 * 2),
        ("bf16[16,257,257]{2,1,0:T(8,128)(2,1)}", 16 * 264 * 384 * 2),
        ("f32[7,300]{0,1:T(8,128)}", 304 * 128 * 4),
        ("f32[8,128]{1,0:T(8,128)S(1)}", 0),
        ("(f32[8,128]{1,0:T(8,128)}, pred[4]{0}, s32[])", 8 * 128 * 4 + 4 + 4),
    ],
)
def test_bytes_in_memory_are_those_of_the_layout(shape, size):
    assert hlo._moved_all(shape) == size


def test_what_eight_devices_say_to_each_other_by_closed_form():
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), (AxisType.Auto,) * 2)
    depth, width, batch = 5, 64, 32

    def step(w, x):
        def layer(x, w):
            y = jax.lax.with_sharding_constraint(x, P(("data", "fsdp"))) @ w
            return jnp.tanh(y), None

        def loss(w):
            return jax.lax.scan(layer, x, w)[0].sum()

        return jax.grad(loss)(w)

    def split(*axes):
        return NamedSharding(mesh, P(*axes))

    w = jax.ShapeDtypeStruct((depth, width, width), "float32", sharding=split())
    x = jax.ShapeDtypeStruct((batch, width), "float32", sharding=split(("data", "fsdp")))
    with jax.set_mesh(mesh):
        compiled = jax.jit(step, out_shardings=split()).lower(w, x).compile()
    module = hlo.Module(compiled.as_text())
    assert not module.unknown_loops
    moved = sum(c.bytes * c.count for c in module.collectives)
    assert moved == depth * width * width * 4  # the gradient, summed over all eight
    assert {c.kind for c in module.collectives} == {"all-reduce"}
    assert {collectives.mesh_axes(c.devices, dict(mesh.shape)) for c in module.collectives} == {
        ("data", "fsdp")
    }


def test_traffic_is_what_xla_counts_and_a_loop_reads_its_slices():
    n, depth = 256, 6
    x = jax.ShapeDtypeStruct((n, n), "float32")
    w = jax.ShapeDtypeStruct((depth, n, n), "float32")

    def once(x, w):
        return jnp.tanh(x @ w) + 1

    compiled = jax.jit(once).lower(x, x).compile()
    flat = hlo.Module(compiled.as_text()).hbm_bytes
    assert flat == pytest.approx(compiled.cost_analysis()["bytes accessed"], rel=0.05)

    scanned = jax.jit(lambda x, w: jax.lax.scan(lambda x, w: (once(x, w), None), x, w)[0])
    module = hlo.Module(scanned.lower(x, w).compile().as_text())
    # The carry may be copied and a slice written out before it is read; whole stacks are not read.
    assert depth * flat <= module.hbm_bytes < 2 * depth * flat
