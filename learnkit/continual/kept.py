"""Keeping a continual classifier: as JSON and tensors, in a state dict, as a copy."""

import copy
import json
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from learnkit.continual.head import KnowingHead
from learnkit.continual.settings import Settings
from learnkit.continual.state import pack, unpack
from learnkit.errors import ContinualStateError, LearnkitError

if TYPE_CHECKING:
    from typing_extensions import Self


class KeptHead(KnowingHead):
    """A head whose whole knowledge can be taken out, stored and put back."""

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """(configuration for JSON, tensors): everything there is to keep."""
        return pack(self.knowledge)

    @classmethod
    def from_state(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "Self":
        """The classifier `state` was taken from; what follows from the statistics is made anew.

        Raises:
            StatisticsError: Something cannot have come from `state`.
        """
        knowledge = unpack(config, tensors)
        new = cls(**knowledge.settings.to_dict())
        new._states = (knowledge.derive(None),)
        return new

    def extra_repr(self) -> str:
        """What `repr` shows."""
        images = [n for n in self.n_images.values() if n]
        about = f"{self.n_features} features, {len(images)} classes, {sum(images)} images"
        return f"{about}, classifier={self.settings.classifier!r}"

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        config, tensors = self.state()
        text = json.dumps(config, sort_keys=True).encode()
        destination[f"{prefix}config"] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        destination.update({f"{prefix}{name}": tensor for name, tensor in tensors.items()})

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        found = {k[len(prefix) :]: v.cpu() for k, v in state_dict.items() if k.startswith(prefix)}
        if "config" not in found:
            missing_keys.append(f"{prefix}config")
            return
        try:
            knowledge = unpack(_read_config(found.pop("config")), found)
            self._check_same_network(knowledge.settings)
            with self._lock:
                self._states = (knowledge.derive(None),)
        except LearnkitError as error:
            error_msgs.append(f"{prefix or 'ContinualClassifier'}: {error}")

    def _check_same_network(self, settings: Settings) -> None:
        for name in "n_features", "root":
            if getattr(settings, name) != getattr(self.settings, name):
                raise ContinualStateError(
                    f"`{name}` is {getattr(self.settings, name)} here and "
                    f"{getattr(settings, name)} in the state: it belongs to another network"
                )

    def __deepcopy__(self, memo: dict[int, Any]) -> "Self":
        new = type(self)(**self.settings.to_dict())
        new._states = self._states  # unchanging: shared
        new.train(self.training)
        new.__dict__.update(
            {k: copy.deepcopy(v, memo) for k, v in self.__dict__.items() if k not in new.__dict__}
        )
        memo[id(self)] = new
        return new

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._lock = threading.RLock()


def _read_config(packed: Any) -> Any:
    """The configuration from its bytes in a state dict."""
    try:
        return json.loads(bytes(packed.to(torch.uint8).flatten().tolist()).decode())
    except (AttributeError, ValueError, TypeError) as error:
        raise ContinualStateError(f"`config` cannot be read: {error}") from error
