"""Statistics of compiled programs against numbers counted by hand."""

import jax
import jax.numpy as jnp
import pytest

from cope_jax.parallel.mesh import batch_sharding, make_mesh, replicated
from cope_jax.parallel.program import Collective, analyze

# Five kernels of the entry: the fusion reads 2·4 and writes 4 floats; the product reads 8·4 + 4·2 and writes 8·2; the
# copy moves 2 × 16 bytes; the custom call reads 8 × 2 floats and writes 3; the start of the all-reduce reads and writes
# 4 floats. The body of the loop runs six times, and its collectives count as often.
HLO = """HloModule step

%fused (a: f32[4], b: f32[4]) -> f32[4] {
  %a = f32[4]{0} parameter(0)
  %b = f32[4]{0} parameter(1)
  ROOT %sum = f32[4]{0} add(%a, %b)
}

%condition (state: (s32[], u8[16])) -> pred[] {
  %state = (s32[], u8[16]{0}) parameter(0)
  %counter = s32[] get-tuple-element(%state), index=0
  %limit = s32[] constant(6)
  ROOT %less = pred[] compare(%counter, %limit), direction=LT
}

%body (state.1: (s32[], u8[16])) -> (s32[], u8[16]) {
  %state.1 = (s32[], u8[16]{0}) parameter(0)
  %frames = u8[16]{0} get-tuple-element(%state.1), index=1
  %moved = u8[16]{0} collective-permute(%frames), source_target_pairs={{0,1},{1,0}}
  %counter.1 = s32[] get-tuple-element(%state.1), index=0
  ROOT %next = (s32[], u8[16]{0}) tuple(%counter.1, %moved)
}

ENTRY %main (x: f32[4], y: f32[4], m: f32[8,4], n: f32[4,2]) -> f32[3] {
  %x = f32[4]{0} parameter(0)
  %y = f32[4]{0} parameter(1)
  %m = f32[8,4]{1,0} parameter(2)
  %n = f32[4,2]{1,0} parameter(3)
  %total = f32[4]{0} fusion(%x, %y), kind=kLoop, calls=%fused
  %product = f32[8,2]{1,0} dot(%m, %n), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %pixels = u8[16]{0} copy(%m)
  %start = f32[4]{0} all-reduce-start(%total), to_apply=%fused
  %done = f32[4]{0} all-reduce-done(%start)
  %zero = s32[] constant(0)
  %init = (s32[], u8[16]{0}) tuple(%zero, %pixels)
  %loop = (s32[], u8[16]{0}) while(%init), condition=%condition, body=%body
  ROOT %result = f32[3]{0} custom-call(%product), custom_call_target="__cudnn$fmhaSoftmax"
}
"""


def test_kernels_bytes_and_collectives_of_a_program():
    program = analyze(HLO)
    assert program.launches == 5 + 6
    of_entry = 4 * (2 * 4 + 4) + 4 * (32 + 8 + 16) + (4 * 32 + 16) + 4 * (16 + 3) + 4 * (4 + 4)
    assert program.bytes_moved == of_entry + 6 * 2 * 16
    assert program.collectives == {"all-reduce": Collective(1, 16), "collective-permute": Collective(6, 6 * 16)}
    assert program.permuted_types == {"u8"}
    assert program.custom_calls == {"__cudnn$fmhaSoftmax": 1}


def test_the_number_of_iterations_may_be_given():
    known = HLO.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"9"}}')
    assert analyze(known).launches == 5 + 9
    unknown = HLO.replace("direction=LT", "direction=NE")
    assert analyze(unknown).launches == 5 + 1


def test_slices_and_updates_move_only_their_part():
    hlo = """ENTRY %main (a: f32[100], b: f32[3], i: s32[]) -> f32[100] {
  %a = f32[100]{0} parameter(0)
  %b = f32[3]{0} parameter(1)
  %i = s32[] parameter(2)
  %part = f32[5]{0} dynamic-slice(%a, %i), dynamic_slice_sizes={5}
  ROOT %updated = f32[100]{0} dynamic-update-slice(%a, %b, %i)
}
"""
    read_and_written = (5 * 4 + 4 + 5 * 4) + (3 * 4 + 4 + 3 * 4)
    assert analyze(hlo).bytes_moved == read_and_written


@pytest.mark.parametrize("layers", [3, 5])
def test_a_real_program_on_eight_devices(layers):
    """Each layer's gradient is summed over the devices, in or after the loop over layers."""
    mesh = make_mesh(data=8, fsdp=1, tensor=1)

    def loss(params, x):
        return jnp.square(jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params)[0]).sum()

    shapes = jax.ShapeDtypeStruct((layers, 16, 16), jnp.float32), jax.ShapeDtypeStruct((8, 16), jnp.float32)
    shardings = {"in_shardings": (replicated(mesh), batch_sharding(mesh)), "out_shardings": replicated(mesh)}
    program = analyze(jax.jit(jax.grad(loss), **shardings).lower(*shapes).compile().as_text())
    assert program.collectives.keys() == {"all-reduce"}
    assert program.collectives["all-reduce"].bytes == layers * 16 * 16 * 4
    assert program.launches >= 2 * layers
