from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import Library
from torch.nn import functional as F
from torch.nn.modules import module as module_hooks
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from edgegen.cost import CostTracker, count

Inputs = tuple[torch.Tensor, ...]


def test_facts_of_a_small_unet(unet: UNet2DConditionModel, unet_inputs: Inputs) -> None:
    """Known beforehand, in MFLOP: conv 996.1, linear 307.0, attention 909.5, together 2212.67."""
    cost = count(unet, *unet_inputs)
    work = cost.total
    assert round(2 * work.macs_all / 1e6, 2) == 2212.67
    mflops = [round(2 * macs / 1e6, 1) for macs in (work.conv, work.linear, work.attention)]
    assert mflops == [996.1, 307.0, 909.5]
    assert work.macs_conv_linear == work.conv + work.linear
    assert not cost.uncounted


def test_agrees_with_torch_on_meta(unet: UNet2DConditionModel, unet_inputs: Inputs) -> None:
    unet = unet.to("meta")
    inputs = [tensor.to("meta") for tensor in unet_inputs]
    with torch.no_grad(), FlopCounterMode(display=False) as torchs:
        unet(*inputs)
    cost = count(unet, *inputs)
    assert 2 * cost.macs_all == torchs.get_total_flops()
    for block in ("down_blocks.0", "up_blocks.1", "mid_block"):
        theirs = sum(torchs.get_flop_counts()[f"UNet2DConditionModel.{block}"].values())
        assert 2 * cost.under(block).macs_all == theirs


def test_cpu_meta_and_fake_agree(unet: UNet2DConditionModel, unet_inputs: Inputs) -> None:
    on_cpu = count(unet, *unet_inputs)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        on_fake = count(unet, *(mode.from_tensor(tensor) for tensor in unet_inputs))
    on_meta = count(unet.to("meta"), *(tensor.to("meta") for tensor in unet_inputs))
    for other in (on_fake, on_meta):
        assert other.macs_all == on_cpu.macs_all
        assert other.macs_conv_linear == on_cpu.macs_conv_linear
        assert other.params == on_cpu.params
        assert other.bops == on_cpu.bops
        assert other.bytes == on_cpu.bytes


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_agrees_with_cpu(unet: UNet2DConditionModel, unet_inputs: Inputs) -> None:
    on_cpu = count(unet, *unet_inputs)
    on_cuda = count(unet.cuda(), *(tensor.cuda() for tensor in unet_inputs))
    assert on_cuda.macs_all == on_cpu.macs_all
    assert on_cuda.macs_conv_linear == on_cpu.macs_conv_linear
    assert on_cuda.bops == on_cpu.bops


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_eager_attention_is_attention(
    unet: UNet2DConditionModel, unet_inputs: Inputs, device: str
) -> None:
    unet = unet.to(device)
    inputs = [tensor.to(device) for tensor in unet_inputs]
    fused = count(unet, *inputs)
    unet.set_attn_processor(AttnProcessor())  # baddbmm and bmm
    eager = count(unet, *inputs)
    assert eager.macs_all == fused.macs_all
    assert eager.macs_conv_linear == fused.macs_conv_linear
    assert eager.bops == fused.bops
    assert eager.bytes > fused.bytes  # the matrix of scores is written and read


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_grad_modes_agree(unet: UNet2DConditionModel, unet_inputs: Inputs, context: Any) -> None:
    expected = count(unet, *unet_inputs)
    with context():
        cost = count(unet, *unet_inputs)
    assert cost.macs_conv_linear == expected.macs_conv_linear
    assert cost.macs_all == expected.macs_all
    assert not cost.uncounted


def test_work_grows_with_the_batch(unet: UNet2DConditionModel, unet_inputs: Inputs) -> None:
    sample, timestep, text = unet_inputs
    two = count(unet, sample, timestep, text)
    six = count(unet, sample.repeat(3, 1, 1, 1), timestep, text.repeat(3, 1, 1))
    assert six.macs_all == 3 * two.macs_all
    assert six.total.attention == 3 * two.total.attention
    assert two.bytes < six.bytes < 3 * two.bytes  # weights are read once
    assert six.params == two.params


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (nn.Linear(5, 7), (3, 4, 5), 3 * 4 * 5 * 7),
        (nn.Linear(5, 7, bias=False), (3, 4, 5), 3 * 4 * 5 * 7),
        (nn.Conv2d(4, 6, 3, padding=1), (2, 4, 8, 8), 2 * 8 * 8 * 4 * 6 * 9),
        (nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 8, 8), 2 * 4 * 4 * 4 * 6 * 9),
        (nn.Conv2d(4, 6, 3, groups=2, padding=1), (2, 4, 8, 8), 2 * 8 * 8 * 2 * 6 * 9),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), (2, 4, 8, 8), 2 * 8 * 8 * 4 * 6 * 4),
        (nn.Conv1d(4, 6, 3), (2, 4, 10), 2 * 8 * 4 * 6 * 3),
        (nn.Conv3d(4, 6, (3, 1, 1), padding=(1, 0, 0)), (2, 4, 5, 8, 8), 2 * 5 * 64 * 4 * 6 * 3),
    ],
)
def test_closed_forms(layer: nn.Module, shape: tuple[int, ...], macs: int) -> None:
    for device in ("cpu", "meta"):
        cost = count(layer.to(device), torch.zeros(shape, device=device))
        assert cost.macs_all == cost.macs_conv_linear == macs
        assert cost.bops == macs * 32 * 32
        assert cost.params == sum(p.numel() for p in layer.parameters())


def test_a_table_is_read_where_it_is_looked_up() -> None:
    table = nn.Embedding(1000, 8)
    cost = count(table, torch.tensor([1, 2, 3]))
    assert cost.bytes == 3 * 8 + 2 * 3 * 8 * 4  # numbers; rows read, rows written
    assert cost.stored_bytes == 1000 * 8 * 4
    assert not cost.uncounted
    often = count(nn.Embedding(2, 8), torch.zeros(100, dtype=torch.long))
    assert often.bytes == 100 * 8 + 2 * 8 * 4 + 100 * 8 * 4  # once read, it is at hand


def test_bytes_of_unfused_operators() -> None:
    net = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.ReLU()).half()
    conv = 4 * 8 * 8 + 6 * 4 * 9 + 6 * 8 * 8  # input, weight, output
    relu = 2 * 6 * 8 * 8
    cost = count(net.to("meta"), torch.zeros(1, 4, 8, 8, dtype=torch.half, device="meta"))
    assert cost.bytes == 2 * (conv + relu)
    assert cost.modules["0"].bytes == 2 * conv


class Attention(nn.Module):
    """Self-attention written out, with a learned position bias and causal mask as buffers."""

    def __init__(self, width: int, tokens: int, mode: str) -> None:
        super().__init__()
        self.mode = mode
        self.qkv = nn.Linear(width, 3 * width)
        self.register_buffer("mask", torch.zeros(tokens, tokens))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        if self.mode == "sdpa":
            return F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        if self.mode == "baddbmm":
            mask = self.mask.expand(len(x), -1, -1)
            scores = torch.baddbmm(mask, q, k.transpose(1, 2))
        elif self.mode == "einsum":
            scores = torch.einsum("bqd,bkd->bqk", q, k)
        else:
            scores = q @ k.transpose(1, 2)
        return scores.softmax(-1) @ v


@pytest.mark.parametrize("mode", ["sdpa", "baddbmm", "einsum", "matmul"])
def test_attention_by_any_operator(mode: str) -> None:
    batch, tokens, width = 2, 10, 16
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            cost = count(Attention(width, tokens, mode), torch.zeros(batch, tokens, width))
        assert cost.total.attention == 2 * batch * tokens * tokens * width
        assert cost.total.linear == batch * tokens * width * 3 * width


def test_multihead_attention_of_torch() -> None:
    layer = nn.MultiheadAttention(16, 4, batch_first=True)  # training mode: no fused fast path
    x = torch.zeros(2, 10, 16)
    for weights in (False, True):
        cost = count(layer, x, x, x, need_weights=weights)
        assert cost.total.attention == 2 * 2 * 10 * 10 * 16
        assert cost.total.linear == 4 * 2 * 10 * 16 * 16


def test_grouped_query_attention() -> None:
    class Grouped(nn.Module):
        def forward(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
            return F.scaled_dot_product_attention(q, k, k, enable_gqa=True)

    q, k = torch.zeros(1, 8, 6, 4), torch.zeros(1, 2, 9, 4)
    assert count(Grouped(), q, k).total.attention == 2 * 8 * 6 * 9 * 4


class Computed(nn.Linear):
    """A linear whose matrix is computed in its forward, as in simulated quantization and LR-QAT."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__(width, width, bias=False)
        self.a = nn.Parameter(torch.zeros(width, rank))
        self.b = nn.Parameter(torch.zeros(rank, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = torch.round(self.weight.div(0.1) + self.a @ self.b).clamp(-8, 7) * 0.1
        return torch.mm(x, weight.t())


def test_a_computed_matrix_is_a_weight() -> None:
    holder = nn.Sequential(Computed(8, 2))
    cost = count(holder, torch.zeros(5, 8))
    assert cost.total.attention == 0
    assert cost.total.linear == 5 * 8 * 8 + 8 * 2 * 8


def test_weights_that_replace_the_parameters_are_weights() -> None:
    layer = nn.Linear(8, 8, bias=False)
    handle = layer.register_forward_pre_hook(
        lambda module, _: setattr(module.weight, "data", torch.ones(8, 8))
    )
    assert count(layer, torch.zeros(3, 8)).total.linear == 3 * 8 * 8
    handle.remove()


class Quantized(nn.Module):
    weight_bits, act_bits = 4.25, 8

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        self.stored_bytes = 77

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x * 1.0, (self.layer.weight / 3).round() * 3)


def test_declared_bits() -> None:
    net = nn.Sequential(Quantized(nn.Linear(8, 6, bias=False)), nn.Linear(6, 2, bias=False))
    cost = count(net, torch.zeros(5, 8))
    assert cost.modules["0"].linear == 5 * 8 * 6
    assert cost.modules["0"].bops == 5 * 8 * 6 * 4.25 * 8
    assert cost.modules["1"].bops == 5 * 6 * 2 * 32 * 32
    # The weights as stored, the input at 8 bits, the output as it is.
    assert cost.modules["0"].bytes == 77 + 5 * 8 + 5 * 6 * 4
    assert cost.stored_bytes == 77 + 6 * 2 * 4


@pytest.mark.parametrize("mode", ["sdpa", "matmul"])
def test_attention_has_its_own_bits(mode: str) -> None:
    layer = Attention(16, 10, mode)
    layer.weight_bits, layer.act_bits, layer.stored_bytes = 4, 8, 1  # of its linear, not of QKᵀ
    x = torch.zeros(2, 10, 16)
    cost = count(layer, x)
    attention, linear = cost.total.attention, cost.total.linear
    assert cost.bops == attention * 32 * 32 + linear * 4 * 8
    layer.attention_bits = 8
    assert count(layer, x).bops == attention * 8 * 8 + linear * 4 * 8


class Calls(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: torch.Tensor) -> torch.Tensor:
        return self.function(*args)


@pytest.fixture
def operator() -> Iterator[Any]:
    library = Library("edgegen_test", "FRAGMENT")
    library.define("twice(Tensor x) -> Tensor")
    library.impl("twice", lambda x: x * 2, "CompositeExplicitAutograd")
    yield torch.ops.edgegen_test.twice
    library._destroy()


def test_what_has_no_formula_is_named(operator: Any) -> None:
    net = Calls(lambda x: operator(operator(torch.fft.rfft(x).real)) @ x[:3])
    cost = count(net, torch.zeros(4, 4))
    assert cost.uncounted == {"aten::_fft_r2c": 1, "edgegen_test::twice": 2}
    assert cost.macs_all == 4 * 3 * 4


def test_a_formula_that_the_user_registers_counts(operator: Any) -> None:
    flop_registry[operator] = lambda x, out_val=None: 2 * x.numel()
    try:
        cost = count(Calls(operator), torch.zeros(4, 4))
    finally:
        del flop_registry[operator]
    assert cost.macs_all == 16
    assert not cost.uncounted
    assert count(Calls(operator), torch.zeros(4, 4)).uncounted


def test_integer_products() -> None:
    layer = nn.Module()
    layer.register_buffer("weight", torch.zeros(16, 32, dtype=torch.int8))
    layer.forward = lambda x: torch._int_mm(x, layer.weight.t())  # type: ignore[method-assign]
    cost = count(layer, torch.zeros(24, 32, dtype=torch.int8))
    assert cost.total.linear == 24 * 32 * 16
    assert cost.bops == 24 * 32 * 16 * 8 * 8


def test_modules_outside_the_tree_are_counted_under_their_caller() -> None:
    adaptor = nn.Linear(8, 8)
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    net[1].forward = lambda x: adaptor(x) + 1
    cost = count(net, torch.zeros(3, 8))
    assert {name: row.linear for name, row in cost.modules.items() if row.linear} == {
        "0": 3 * 64,
        "1.Linear": 3 * 64,
    }
    assert cost.under("1").linear == 3 * 64


def test_shared_parameters_are_counted_once() -> None:
    layer = nn.Linear(8, 8, bias=False)
    cost = count(nn.Sequential(layer, layer), torch.zeros(2, 8))
    assert (cost.params, cost.stored_bytes, cost.macs_all) == (64, 256, 2 * 2 * 64)


def test_nothing_stays_behind_after_an_error(unet: UNet2DConditionModel) -> None:
    def hooks() -> list[int]:
        return [len(v) for k, v in vars(module_hooks).items() if k.startswith("_global_forward")]

    before, attention = hooks(), F.scaled_dot_product_attention
    with pytest.raises(Exception, match=r"shape|size|channels"):
        count(unet, torch.zeros(2, 5, 32, 32), 1, torch.zeros(2, 77, 48))
    assert hooks() == before
    assert F.scaled_dot_product_attention is attention
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None


def test_errors_inside_that_are_handled_keep_the_names_right() -> None:
    class Fails(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise KeyError("no")

    class Tries(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fails, self.works = Fails(), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            try:
                return self.fails(x)
            except KeyError:
                return self.works(x) @ x.t()

    cost = count(Tries(), torch.zeros(3, 8))
    assert cost.modules["works"].linear == 3 * 64
    assert cost.modules[""].attention == 3 * 8 * 3


def test_compiled_modules_are_refused() -> None:
    wrapped = torch.compile(nn.Linear(2, 2), backend="eager")
    in_place = nn.Linear(2, 2)
    in_place.compile(backend="eager")
    for module in (wrapped, in_place):
        with pytest.raises(ValueError, match="cannot count a compiled"):
            count(module, torch.zeros(1, 2))


def test_costs_add_and_multiply() -> None:
    layer = nn.Linear(8, 8)
    one, three = count(layer, torch.zeros(1, 8)), count(layer, torch.zeros(3, 8))
    assert (one * 3).macs_all == three.macs_all == (one + one + one).macs_all
    assert (one + one).params == one.params


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_counting_moves_no_bit(context: Any) -> None:
    """A layer on tokens that are a transposed picture, as in the attention of autoencoders."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(2), _Tokens(), nn.Linear(8, 8))
    pictures = torch.randn(3, 8, 8, 8)
    with context():
        plain = model(pictures)
        with CostTracker(model) as tracker:
            counted = model(pictures)
    assert torch.equal(plain, counted)
    assert tracker.total_macs == 3 * 64 * 8 * 8
    assert not tracker.uncounted


class _Tokens(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.transpose(1, 2)
