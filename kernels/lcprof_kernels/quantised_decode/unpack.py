"""Words of codes to planes of fp16 numbers, in registers, without an integer-to-float conversion.

A word is 16 bits: four int4 codes or two 8-bit codes. Loaded as words, a tile has the layout of a
16-bit matrix operand (ldmatrix can transpose it), and two neighbouring words in one register become
two neighbouring elements of the operand. Plane p holds the p-th code of every word.

int4 codes are masked in place: the bits 0000nnnn of a half are the subnormal n * 2**-24, and
nnnn0000 is n * 2**-20, both exact in a matrix instruction. int8 codes become the mantissa of 1024
+ 128 + n by one three-input logic operation, less 1152 (the exponent trick of FasterTransformer's
int8 kernels). fp8 has an instruction from sm_89 on; before that the bits are moved into place and
rescaled.

Each unpacking exists twice: as inline assembly, and in plain arithmetic for the interpreter.
"""

# Kernel code is a language of its own: arguments are untyped.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def unpack_int4(words, ASSEMBLY: tl.constexpr):
    """Four planes: n * 2**-24 in planes 0 and 2, n * 2**-20 in planes 1 and 3."""
    if ASSEMBLY:
        return tl.inline_asm_elementwise(
            """
            {
            .reg .b32 high;
            and.b32 $0, $4, 0x000F000F;
            and.b32 $1, $4, 0x00F000F0;
            shr.u32 high, $4, 8;
            and.b32 $2, high, 0x000F000F;
            and.b32 $3, high, 0x00F000F0;
            }
            """,
            "=r,=r,=r,=r,r",
            [words],
            dtype=(tl.float16, tl.float16, tl.float16, tl.float16),
            is_pure=True,
            pack=2,
        )
    wide = words.to(tl.int32)
    low: tl.constexpr = 2.0**-24
    high: tl.constexpr = 2.0**-20
    return (
        ((wide & 15).to(tl.float32) * low).to(tl.float16),
        (((wide >> 4) & 15).to(tl.float32) * high).to(tl.float16),
        (((wide >> 8) & 15).to(tl.float32) * low).to(tl.float16),
        (((wide >> 12) & 15).to(tl.float32) * high).to(tl.float16),
    )


@triton.jit
def unpack_int8(words, ASSEMBLY: tl.constexpr):
    """Two planes: the low bytes, the high bytes."""
    if ASSEMBLY:
        return tl.inline_asm_elementwise(
            """
            {
            .reg .b32 even, odd, bias;
            mov.b32 bias, 0x64806480;
            lop3.b32 even, $2, 0x00FF00FF, bias, 0x6A;
            shr.u32 odd, $2, 8;
            lop3.b32 odd, odd, 0x00FF00FF, bias, 0x6A;
            sub.rn.f16x2 $0, even, bias;
            sub.rn.f16x2 $1, odd, bias;
            }
            """,
            "=r,=r,r",
            [words],
            dtype=(tl.float16, tl.float16),
            is_pure=True,
            pack=2,
        )
    wide = words.to(tl.int32)
    return ((wide << 24) >> 24).to(tl.float16), (wide >> 8).to(tl.float16)


@triton.jit
def _e4m3(byte):
    exponent = (byte >> 3) & 15
    mantissa = (byte & 7).to(tl.float32)
    normal = tl.exp2(exponent.to(tl.float32) - 7) * (1 + mantissa * 0.125)
    size = tl.where(exponent == 0, mantissa * 0.001953125, normal)
    size = tl.where((byte & 127) == 127, float("nan"), size)
    return tl.where(byte >= 128, -size, size).to(tl.float16)


@triton.jit
def unpack_fp8(words, ASSEMBLY: tl.constexpr, NATIVE: tl.constexpr):
    """Two planes: the low bytes, the high bytes. Without NATIVE the NaN code reads as 480."""
    if ASSEMBLY and NATIVE:
        return tl.inline_asm_elementwise(
            """
            {
            .reg .b32 sorted;
            .reg .b16 even, odd;
            prmt.b32 sorted, $2, $2, 0x3120;
            mov.b32 {even, odd}, sorted;
            cvt.rn.f16x2.e4m3x2 $0, even;
            cvt.rn.f16x2.e4m3x2 $1, odd;
            }
            """,
            "=r,=r,r",
            [words],
            dtype=(tl.float16, tl.float16),
            is_pure=True,
            pack=2,
        )
    if ASSEMBLY:
        return tl.inline_asm_elementwise(
            """
            {
            .reg .b32 even, odd, size, by;
            mov.b32 by, 0x5C005C00;
            shl.b32 even, $2, 8;
            shr.u32 size, even, 1;
            and.b32 size, size, 0x3F803F80;
            lop3.b32 even, even, 0x80008000, size, 0xEA;
            mul.rn.f16x2 $0, even, by;
            shr.u32 size, $2, 1;
            and.b32 size, size, 0x3F803F80;
            lop3.b32 odd, $2, 0x80008000, size, 0xEA;
            mul.rn.f16x2 $1, odd, by;
            }
            """,
            "=r,=r,r",
            [words],
            dtype=(tl.float16, tl.float16),
            is_pure=True,
            pack=2,
        )
    wide = words.to(tl.int32)
    return _e4m3(wide & 255), _e4m3((wide >> 8) & 255)


@triton.jit
def unpack(words, CODE: tl.constexpr, ASSEMBLY: tl.constexpr, NATIVE: tl.constexpr):
    """The planes of a tile of words: four for int4, two for int8 and fp8."""
    if CODE == "int4":
        planes = unpack_int4(words, ASSEMBLY)
    elif CODE == "int8":
        planes = unpack_int8(words, ASSEMBLY)
    else:
        planes = unpack_fp8(words, ASSEMBLY, NATIVE)
    return planes
