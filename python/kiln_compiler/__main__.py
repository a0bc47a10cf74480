"""``python -m kiln_compiler compile model.onnx``: the command, where its folder is not on the path."""

import os
import sys

from ._binary import binary
from ._errors import KilnError


def main() -> None:
    try:
        program = binary()
    except KilnError as e:
        sys.exit(f"kiln: {e}")
    os.execv(program, [str(program), *sys.argv[1:]])


if __name__ == "__main__":
    main()
