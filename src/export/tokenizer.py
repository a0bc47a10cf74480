"""Texts to what the model reads, by its tokenizer.json. Written by kiln; needs the packages `tokenizers` and `numpy`."""

import json
import os

import numpy as np
import triton_python_backend_utils as pb_utils
from tokenizers import Tokenizer

FIELDS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        option = {name: value["string_value"] for name, value in config["parameters"].items()}
        self.outputs = [(o["name"], pb_utils.triton_string_to_numpy(o["data_type"])) for o in config["output"]]
        folder = os.path.join(args["model_repository"], args["model_version"])
        self.tokenizer = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
        longest = int(option["max_length"])
        self.tokenizer.enable_truncation(longest)
        padding = {k: v for k, v in (self.tokenizer.padding or {}).items() if k in ("pad_id", "pad_type_id", "pad_token", "direction")}
        if option["padding"] == "fixed":
            self.tokenizer.enable_padding(length=longest, **padding)
        else:
            # Requests of one length can share a batch.
            self.tokenizer.enable_padding(pad_to_multiple_of=int(option["padding"]), **padding)

    def execute(self, requests):
        responses = []
        for request in requests:
            texts = pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy().reshape(-1)
            encoded = self.tokenizer.encode_batch([text.decode() for text in texts])
            arrays = [(name, np.array([getattr(e, FIELDS[name]) for e in encoded], dtype=dtype)) for name, dtype in self.outputs]
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in arrays]))
        return responses
