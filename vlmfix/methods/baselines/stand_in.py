"""What controls share that do what a method does, with something random in the place of what it chooses."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from transformers import PreTrainedConfig

from vlmfix.engine.capabilities import StandsIn
from vlmfix.methods.base import Method
from vlmfix.methods.registry import make_method
from vlmfix.methods.validation import check_choice, check_whole
from vlmfix.models.profiles import Profile


@dataclass(frozen=True, kw_only=True)
class Drawn(Method):
    """Mixin before a method, of which something is drawn at random.

    Args:
        of: the method, by name.
        settings: its parameters, those of the checkpoint included, but for the names of its files.
        seed: of the draws.
    """

    of: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict, compare=False)
    seed: int = 0

    parameter_files: ClassVar[Sequence[str]] = ()  # of which the shapes count alone

    @property
    def parameters(self) -> dict[str, Any]:
        return {"of": self.of, "settings": self.settings, "seed": self.seed}

    def draw(self, config: PreTrainedConfig) -> Self:
        """It with what can be drawn before a run.

        Raises:
            ValueError: there is nothing to draw from.
        """
        return self


@dataclass(frozen=True, kw_only=True)
class StandIn(Method, StandsIn, ABC):
    """Base of the controls that do what a method does, and draw at random what it chooses.

    Args:
        of: the method, by name.
        settings: its parameters, the others at their defaults or those of the checkpoint's profile.
        seed: of the draws, 0 or more.
    """

    of: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)
    seed: int = 0

    stand_ins: ClassVar[Mapping[str, type[Drawn]]]
    """Those that draw, by the name of the method."""

    def __post_init__(self) -> None:
        check_choice("of", self.of, tuple(self.stand_ins))
        if not isinstance(self.settings, Mapping) or not all(isinstance(key, str) for key in self.settings):
            raise ValueError(
                f"settings is {self.settings!r}; it must be a mapping of parameters of {self.of}"
            )
        check_whole("seed", self.seed, 0, 2**31 - 1)
        make_method(self.of, **self.settings)

    @property
    def method(self) -> Method:
        """The method in whose place it stands."""
        return make_method(self.of, **self.settings)

    @property
    def is_identity(self) -> bool:
        return self.method.is_identity

    def resolve(self, config: PreTrainedConfig, profile: Profile | None) -> Any:
        resolved = self.method.resolve(config, profile)
        own = resolved.parameters
        settings = own | {name: self.settings.get(name) for name in resolved.parameter_files}
        return self.stand_ins[self.of](**own, of=self.of, settings=settings, seed=self.seed).draw(config)
