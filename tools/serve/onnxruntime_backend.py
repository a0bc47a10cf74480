"""Stands in for Triton's ONNX Runtime backend, which no package brings: a backend in Python of the same name, so that a
repository for the real one is loaded unchanged."""

import json
import os

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        return config

    def initialize(self, args):
        config = json.loads(args["model_config"])
        path = os.path.join(args["model_repository"], args["model_version"], config.get("default_model_filename") or "model.onnx")
        if os.path.isdir(path):
            path = os.path.join(path, "model.onnx")
        self.session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.outputs = [o["name"] for o in config["output"]]

    def execute(self, requests):
        feeds = [{i.name(): i.as_numpy() for i in r.inputs()} for r in requests]
        shapes = {tuple((name, array.shape[1:]) for name, array in sorted(feed.items())) for feed in feeds}
        if len(feeds) == 1 or len(shapes) > 1:
            return [self.respond(self.session.run(self.outputs, feed)) for feed in feeds]
        # One run for all requests, as the real backend does.
        sizes = [len(next(iter(feed.values()))) for feed in feeds]
        joined = {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
        arrays = self.session.run(self.outputs, joined)
        ends = np.cumsum(sizes)
        return [self.respond([array[end - size : end] for array in arrays]) for size, end in zip(sizes, ends)]

    def respond(self, arrays):
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in zip(self.outputs, arrays)])
