"""The OCR engine: rapidocr, with the models that its wheel brings and without its downloads."""

import threading
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowopd.errors import FlowOPDError
from flowopd.rewards.ocr.drawn import drawn_text

DETECTION = "PP-OCRv6_det_small.onnx"
RECOGNITION = "PP-OCRv6_rec_small.onnx"

# All that a reading depends on, said here so that another version of the engine reads the same.
# These are the defaults of rapidocr 3.10, except for use_cls.
READING = {
    "Global.text_score": 0.5,  # the least confidence of a line that counts
    "Global.use_det": True,
    "Global.use_cls": False,  # lines are not turned upside down
    "Global.use_rec": True,
    "Global.use_preprocess_img": True,
    "Global.min_side_len": 30,
    "Global.max_side_len": 2000,
    "Global.use_vertical_padding": True,
    "Global.min_height": 30,
    "Global.width_height_ratio": 8,
    "Det.limit_side_len": 736,
    "Det.limit_type": "min",
    "Det.mean": [0.5, 0.5, 0.5],
    "Det.std": [0.5, 0.5, 0.5],
    "Det.thresh": 0.3,
    "Det.box_thresh": 0.5,
    "Det.max_candidates": 1000,
    "Det.unclip_ratio": 1.6,
    "Det.use_dilation": True,
    "Det.score_mode": "fast",
    "Rec.rec_img_shape": [3, 48, 320],
    "Rec.rec_batch_num": 6,  # lines that are read together are made equally long
}
QUIET = {
    "Global.log_level": "error",
    "EngineConfig.onnxruntime.intra_op_num_threads": 1,
    "EngineConfig.onnxruntime.inter_op_num_threads": 1,
}


_STARTING = threading.Lock()


def engine() -> "Engine":
    """The engine of this process, started when it is first asked for."""
    with _STARTING:
        return _started()


@cache
def _started() -> "Engine":
    """An engine that has read a text, for not before that does it open its models."""
    check_installed()
    try:
        started = Engine()
        started.read(drawn_text("Open"))
    except Exception as error:  # those of onnxruntime have nothing else in common
        raise FlowOPDError(
            f"The engine of 'ocr' cannot be started: {type(error).__name__}: {error} Install it "
            "again: pip install --force-reinstall rapidocr onnxruntime."
        ) from error
    return started


class Engine:
    """Reads one picture at a time, whichever thread asks."""

    def __init__(self) -> None:
        from rapidocr import RapidOCR

        files = {"Det.model_path": DETECTION, "Rec.model_path": RECOGNITION}
        models = {key: str(model_file(name)) for key, name in files.items()}
        self._engine: Any = RapidOCR(params={**READING, **QUIET, **models})
        self._lock = threading.Lock()

    def read(self, image: NDArray[np.uint8]) -> list[str]:
        """The lines of a picture [H, W, 3] in RGB, from top to bottom."""
        with self._lock:
            found = self._engine(np.ascontiguousarray(image[..., ::-1]))
        return list(found.txts or ())


def check_installed() -> None:
    """Refuse to start without the packages of the extra ``ocr``, or without their models."""
    for package in ("rapidocr", "onnxruntime"):
        if find_spec(package) is None:
            raise FlowOPDError(
                f"The scorer 'ocr' needs the package {package}, which is not installed: "
                'pip install "flowopd[ocr]".'
            )
    for name in (DETECTION, RECOGNITION):
        if not model_file(name).is_file():
            raise FlowOPDError(
                f"This version of rapidocr does not bring the model {name}, with which 'ocr' is "
                'defined; pip install "rapidocr==3.10.0".'
            )


def model_file(name: str) -> Path:
    """Where the wheel puts a model."""
    spec = find_spec("rapidocr")
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    return Path(places[0] if places else ".") / "models" / name
