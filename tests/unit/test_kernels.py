"""The fastest kernels of this machine say what torch's say, at any width of a head or a norm."""

from __future__ import annotations

import pytest
import torch

from preceptor_serve.engine.kernels import PLAIN, make_kernels

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
