"""A session as the network of a predictor: images and outputs are as torch has them."""

import torch
from torch import Tensor

from learnkit.backends.session import Outputs, Session
from learnkit.data.preprocess import Preprocessing
from learnkit.errors import PredictionError

LAYOUT = torch.channels_last  # of images in memory that need not be moved for a session


class SessionNetwork:
    """The forward passes of a session, in the shape of `Network`: no locks, any number of threads.

    Args:
        session: runs the network.
        preprocessing: what prepared the images; normalising them is the session's own part.

    Raises:
        PredictionError: the session takes images of another size.
    """

    def __init__(self, session: Session, preprocessing: Preprocessing):
        self.session, self.preprocessing = session, preprocessing
        wanted = (*preprocessing.size, preprocessing.channels)
        if session.shape != wanted:
            raise PredictionError(
                f"the {session.backend} network takes images (H, W, C) {session.shape}; its "
                f"preprocessing makes them {wanted}"
            )

    @property
    def device(self) -> torch.device:
        """Where the network runs."""
        return torch.device(self.session.device)

    def features(self, images: Tensor) -> Tensor:
        """Pooled features float32 (N, D) of `images` uint8 (N, channels, H, W)."""
        return torch.from_numpy(self._run(images)[0])

    def outputs(self, images: Tensor, n_classes: int) -> Tensor:
        """The network's logits float32 (N, n_classes) for `images` uint8 (N, channels, H, W).

        Raises:
            PredictionError: it has no head, or one for another number of classes.
        """
        return self.outputs_and_features(images, n_classes)[0]

    def outputs_and_features(self, images: Tensor, n_classes: int) -> tuple[Tensor, Tensor]:
        """What `outputs` and `features` give, of one pass. Raises like `outputs`."""
        given = self.session.n_outputs
        if given is None:
            raise PredictionError("the network has no head: it gives features, not logits")
        if given != n_classes:
            raise PredictionError(f"the network gives {given} logits for {n_classes} classes")
        features, logits = map(torch.from_numpy, self._run(images))
        return logits, features

    def no_images(self) -> Tensor:
        """An empty batch uint8 (0, channels, H, W)."""
        recipe = self.preprocessing
        return torch.zeros(0, recipe.channels, *recipe.size, dtype=torch.uint8)

    def __repr__(self) -> str:
        return f"SessionNetwork({self.session!r})"

    def _run(self, images: Tensor) -> Outputs:
        channels_last = images.detach().cpu().permute(0, 2, 3, 1).contiguous()
        return self.session.run(channels_last.numpy())
