"""Serve an exported model with LitServe: several worker processes, batches across requests.

    python examples/litserve_server.py MODEL [PORT]
    (printf '{"image": "'; base64 -w0 a.jpg; printf '"}') | curl --json @- 127.0.0.1:8000/predict

LitServe comes with `pip install litserve`. One server of learnkit's own, which also learns new
classes and refuses what is too much, is `learnkit serve MODEL`.
"""

import base64
import binascii
import sys

import litserve as ls
from starlette.responses import JSONResponse

from learnkit import LearnkitError, load_learner
from learnkit.inference.batch import predict_stream


class Classifier(ls.LitAPI):
    """One worker process: decodes and predicts the images of up to `max_batch_size` requests."""

    def __init__(self, path: str, **batching):
        super().__init__(**batching)
        self.path = path

    def setup(self, device):
        """Load the model, in the worker."""
        self.model = load_learner(self.path, device=device)

    def decode_request(self, request):
        """The bytes of an image; what is none becomes an error of that request alone, below."""
        try:
            return base64.b64decode(request["image"], validate=True)
        except (binascii.Error, KeyError, TypeError, ValueError):
            return b""

    def batch(self, inputs):
        """A list, as images may have any size."""
        return list(inputs)

    def predict(self, images):
        """A prediction or an error for each image."""
        stream = predict_stream(self.model, images, bs=len(images), n_workers=2)
        return [result for _, result in stream]

    def unbatch(self, output):
        """The answers of the requests, in their order."""
        return list(output)

    def encode_response(self, output):
        """What the client gets as JSON; 422 with the reason for what cannot be predicted."""
        if isinstance(output, LearnkitError):
            # an HTTPException would fail every request of the batch
            return JSONResponse({"error": str(output)}, status_code=422)
        return output.to_dict()


def make_server(path: str) -> ls.LitServer:
    """A server with one worker on the CPU."""
    api = Classifier(path, max_batch_size=16, batch_timeout=0.005)
    return ls.LitServer(api, accelerator="cpu", workers_per_device=1, max_payload_size=32_000_000)


if __name__ == "__main__":
    port = int(sys.argv[2]) if len(sys.argv) > 2 else 8000
    make_server(sys.argv[1]).run(host="127.0.0.1", port=port, generate_client_file=False)
