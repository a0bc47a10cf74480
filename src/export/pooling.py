"""One embedding of a text from those of its tokens. Written by kiln; needs the package `numpy`."""

import json

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.how = config["parameters"]["pooling"]["string_value"]

    def execute(self, requests):
        responses = []
        for request in requests:
            tokens = pb_utils.get_input_tensor_by_name(request, "TOKENS").as_numpy().astype(np.float32)
            mask = pb_utils.get_input_tensor_by_name(request, "MASK").as_numpy().astype(np.float32)[..., None]
            if self.how == "cls":
                pooled = tokens[:, 0]
            else:
                pooled = (tokens * mask).sum(axis=1) / np.maximum(mask.sum(axis=1), 1e-9)
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("EMBEDDING", np.ascontiguousarray(pooled))]))
        return responses
