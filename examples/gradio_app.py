"""Try an exported model in the browser with Gradio: drop an image, see what it is taken for.

    python examples/gradio_app.py MODEL [PORT]

Gradio comes with `pip install gradio`. The page is for this machine alone: nothing is shared.
"""

import sys

import gradio as gr

from learnkit import load_learner
from learnkit.errors import ImageReadError


def make_app(path: str) -> gr.Interface:
    """A page over the model exported to `path`."""
    model = load_learner(path)

    def classify(file: str | None) -> tuple[dict[str, float], str]:
        """Probabilities by class, and a remark, for the image in `file`."""
        if file is None:
            return {}, "Drop an image on the left."
        try:
            prediction = model.predict(file)
        except ImageReadError:
            return {}, "This file cannot be read as an image."
        if prediction.is_ood is None:
            return dict(prediction.ranking), "This model has no out-of-distribution score."
        usual = "unlike the images it knows" if prediction.is_ood else "of a known kind"
        return dict(prediction.ranking), f"{usual} (score {prediction.ood_score:.3g})"

    # a path and no picture: the model reads the file as it does everywhere else
    return gr.Interface(
        classify,
        gr.Image(type="filepath", label="Image"),
        [gr.Label(num_top_classes=5, label="Class"), gr.Textbox(label="Known?")],
        title="What is it?",
        flagging_mode="never",
        analytics_enabled=False,
    )


if __name__ == "__main__":
    port = int(sys.argv[2]) if len(sys.argv) > 2 else 7860
    app = make_app(sys.argv[1])
    app.launch(server_name="127.0.0.1", server_port=port, share=False, max_file_size="32mb")
