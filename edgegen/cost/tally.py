"""What a call costs, by module: plain numbers that add up."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields


@dataclass
class ModuleCost:
    """Cost of one module's own operators (its children's are theirs), summed over its calls."""

    conv: int = 0  # MACs in convolutions
    linear: int = 0  # MACs in products with a weight
    attention: int = 0  # MACs in products of two activations: QKᵀ and AV
    bops: float = 0.0  # MACs × weight bits × activation bits
    bytes: int = 0  # read and written by unfused operators: an upper bound

    @property
    def macs_all(self) -> int:
        """Convention `all`: convolutions, linears and attention products."""
        return self.conv + self.linear + self.attention

    @property
    def macs_conv_linear(self) -> int:
        """Convention `conv+linear`: without attention products, as most papers print it."""
        return self.conv + self.linear

    def __add__(self, other: ModuleCost) -> ModuleCost:
        return ModuleCost(
            *(getattr(self, f.name) + getattr(other, f.name) for f in fields(ModuleCost))
        )

    def __mul__(self, times: int) -> ModuleCost:
        return ModuleCost(*(getattr(self, f.name) * times for f in fields(ModuleCost)))


@dataclass
class Cost:
    """Cost of one or more calls of a module.

    Attributes:
        modules: qualified name → cost of that module's own operators; "" is the root.
        uncounted: operators that may compute and have no formula → how often they ran. The
            totals leave them out, so they are part of the answer.
        params: unique parameters of the root module, whether they ran or not.
        stored_bytes: bytes of its weights as they are stored.
    """

    modules: dict[str, ModuleCost] = field(default_factory=dict)
    uncounted: Counter[str] = field(default_factory=Counter)
    params: int = 0
    stored_bytes: int = 0

    @property
    def total(self) -> ModuleCost:
        return sum(self.modules.values(), ModuleCost())

    @property
    def macs_all(self) -> int:
        return self.total.macs_all

    @property
    def macs_conv_linear(self) -> int:
        return self.total.macs_conv_linear

    @property
    def bops(self) -> float:
        return self.total.bops

    @property
    def bytes(self) -> int:
        return self.total.bytes

    def under(self, prefix: str) -> ModuleCost:
        """Cost of the module called `prefix` and all below it, such as `up_blocks.2.upsamplers`."""
        return sum(
            (
                cost
                for name, cost in self.modules.items()
                if name == prefix or name.startswith(prefix + ".")
            ),
            ModuleCost(),
        )

    def blocks(self) -> dict[str, ModuleCost]:
        """Cost by block of a UNet, in the order in which the blocks first ran.

        Names are the first one or two parts of the module's: `conv_in`, `down_blocks.0`,
        `mid_block`, `up_blocks.3`, `time_embedding`, …; "" is what the root itself does.
        """
        groups: dict[str, ModuleCost] = {}
        for name, cost in self.modules.items():
            group = _block(name)
            groups[group] = groups.get(group, ModuleCost()) + cost
        return groups

    def __add__(self, other: Cost) -> Cost:
        """Costs of calls of the *same* module: work adds up, parameters do not."""
        modules = dict(self.modules)
        for name, cost in other.modules.items():
            modules[name] = modules[name] + cost if name in modules else cost
        return Cost(
            modules,
            self.uncounted + other.uncounted,
            max(self.params, other.params),
            max(self.stored_bytes, other.stored_bytes),
        )

    def __mul__(self, times: int) -> Cost:
        return Cost(
            {name: cost * times for name, cost in self.modules.items()},
            Counter({name: count * times for name, count in self.uncounted.items()}),
            self.params,
            self.stored_bytes,
        )


def _block(name: str) -> str:
    head, *rest = name.split(".")
    return f"{head}.{rest[0]}" if rest and rest[0].isdigit() else head
