"""The fastest kernels of this machine say what torch's say, at any width of a head or a norm."""

from __future__ import annotations

import pytest
import torch

from preceptor_serve.engine.kernels import PLAIN, QuantisedLinear, ShiftedLinear, cpu_library, make_kernels

WIDTHS = (4, 6, 8, 16, 20, 24, 28, 32, 40, 48, 64, 80, 96, 100, 128)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("num_tokens", [1, 7])
def test_a_rotation_is_torchs_own(width: int, num_tokens: int) -> None:
    generator = torch.Generator().manual_seed(width)
    states_TSE = torch.randn(num_tokens, 3, width, generator=generator).bfloat16()
    table_XE = (2 * torch.rand(20, width, generator=generator) - 1).bfloat16()
    positions_T = torch.arange(num_tokens) + 5
    wanted = PLAIN.turn(states_TSE, positions_T, table_XE)
    found = make_kernels("bfloat16").turn(states_TSE.clone(), positions_T, table_XE)
    torch.testing.assert_close(found, wanted, atol=3e-2, rtol=2e-2)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_norm_is_torchs_own(width: int) -> None:
    generator = torch.Generator().manual_seed(width)
    rows = torch.randn(5, width, generator=generator).bfloat16()
    weight_H = torch.randn(width, generator=generator).bfloat16()
    wanted = PLAIN.norm(rows, weight_H, 1e-5)
    torch.testing.assert_close(make_kernels("bfloat16").norm(rows, weight_H, 1e-5), wanted, atol=3e-2, rtol=2e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("num_tokens", [1, 7, 300])
def test_a_product_of_integers_is_the_same_signed_and_shifted(
    num_tokens: int, biased: bool, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(num_tokens)
    weight_OI, bias_O, x_TI = (torch.randn(*size, generator=generator) for size in ((48, 96), (48,), (num_tokens, 96)))
    # Tokens that differ in size by a thousand, outputs by a hundred: each has its own scale.
    x_TI *= torch.logspace(-2, 1, num_tokens).unsqueeze(1)
    weight_OI *= torch.logspace(-1, 1, 48).unsqueeze(1)
    x_TI, weight_OI, bias_O = x_TI.to(dtype), weight_OI.to(dtype), bias_O.to(dtype)
    makes = (QuantisedLinear, ShiftedLinear)
    signed, shifted = (make(cpu_library(), weight_OI, bias_O if biased else None, largest=64)(x_TI) for make in makes)
    assert shifted.dtype == dtype
    torch.testing.assert_close(shifted, signed, atol=1e-4, rtol=1e-5 if dtype == torch.float32 else 1e-2)
    wanted_TO = x_TI.float() @ weight_OI.float().t() + (bias_O.float() if biased else 0)
    off_T = (shifted.float() - wanted_TO).norm(dim=1) / wanted_TO.norm(dim=1)
    # Rounding to integers puts single tokens off by 0.01 to 0.034; a wrong scale or an overflow, by far more.
    assert off_T.max() < 0.05


def test_int8_products_of_the_largest_numbers_do_not_overflow() -> None:
    weight_OI, x_TI = torch.full((32, 192), -3.0), torch.full((5, 192), 7.0)
    torch.testing.assert_close(
        make_kernels("int8").linear(weight_OI, None)(x_TI), x_TI @ weight_OI.t(), rtol=1e-3, atol=0
    )
